"""What can go wrong with images: one root error; each names the thing and carries the next step."""

from __future__ import annotations


class ImageError(Exception):
    """an image could not be built or used"""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RecipeError(ImageError):
    """a recipe says something that makes no sense; the message names file and key"""


class BuildError(ImageError):
    """a step of a build failed; `log` is the file with everything that the step printed"""

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log
