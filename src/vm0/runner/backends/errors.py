"""What keeps a backend from being made and can be mended here."""

from __future__ import annotations

from vm0.sandbox import BackendUnavailable


class ImageMissing(BackendUnavailable):
    """the image that virtual machines start from has to be built first"""
