"""One line at a time on the machine's console, whose log the host keeps."""

from __future__ import annotations

import os

PREFIX = "vm0: "
MAX_LINE = 500  # characters


class Console:
    """Never raises: a machine without a console works too."""

    def __init__(self, path: str = "/dev/console") -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._fd = 2

    def say(self, text: str) -> None:
        line = PREFIX + " ".join(text.split())[:MAX_LINE] + "\n"
        try:
            os.write(self._fd, line.encode(errors="replace"))
        except OSError:
            pass
