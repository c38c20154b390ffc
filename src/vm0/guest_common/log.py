"""Log lines: `[<time>] [<INFO|WARN|ERROR>] [<tag>] message`, to stderr and at once into the run's system.log.

The file is written before the call returns, so that the last words of a program are there when the final telemetry
upload reads them. A line is one line whatever the message holds, so nobody can forge one; a log that cannot be
written never fails its caller.
"""

from __future__ import annotations

import os
import sys

from vm0.guest_common.clock import rfc3339_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

AGENT_TAG = "sandbox:guest-agent"
DOWNLOAD_TAG = "sandbox:download"
SYSTEM_LOG_NAME = "system.log"
MAX_MESSAGE_CHARS = 16 * 1024
STDERR_FD = 2

# C0 and C1 controls (escape sequences included), and every other character that some reader takes for a line end
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))}
_ESCAPES = {
    **_CONTROLS,
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def one_line(text: str) -> str:
    """`text` as one bounded, printable line."""
    if len(text) > MAX_MESSAGE_CHARS:
        text = f"{text[:MAX_MESSAGE_CHARS]}… ({len(text) - MAX_MESSAGE_CHARS} more characters)"
    return text.translate(_ESCAPES)


def format_line(level: str, tag: str, message: str, at_s: float | None = None) -> str:
    return f"[{rfc3339_ms(at_s)}] [{level}] [{tag}] {one_line(message)}\n"


def describe(error: BaseException) -> str:
    """An exception as text for a log line: its message, or its type when it has none."""
    return str(error).strip() or type(error).__name__


class Log:
    """Writes lines of one tag. `mask` is applied to every message; thread-safe, because a line is one write."""

    def __init__(self, tag: str, path: str | None = None, *, stderr_fd: int | None = STDERR_FD) -> None:
        self._tag = tag
        self._path = path
        self._fd: int | None = None
        self._stderr_fd = stderr_fd
        self.mask: Callable[[str], str] | None = None

    def info(self, message: str) -> None:
        self._write("INFO", message)

    def warn(self, message: str) -> None:
        self._write("WARN", message)

    def error(self, message: str) -> None:
        self._write("ERROR", message)

    def close(self) -> None:
        """Idempotent; a later line opens the file again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _write(self, level: str, message: str) -> None:
        try:
            if self.mask is not None:
                message = self.mask(message)
            line = format_line(level, self._tag, message).encode("utf-8", "backslashreplace")
        except Exception as exc:  # a message that cannot be masked must not be written
            line = format_line(level, self._tag, f"(message withheld: {type(exc).__name__})").encode()
        if self._stderr_fd is not None:
            _write_quietly(self._stderr_fd, line)
        if self._path:
            try:
                if self._fd is None:
                    self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                return
            _write_quietly(self._fd, line)


def _write_quietly(fd: int, line: bytes) -> None:
    try:
        os.write(fd, line)
    except OSError:
        return


def system_log(tag: str, runtime_dir: str) -> Log:
    """The log of a run: stderr and `<runtime_dir>/system.log`."""
    return Log(tag, os.path.join(runtime_dir, SYSTEM_LOG_NAME))


def die(tag: str, message: str, hint: str = "") -> int:
    """Print an error before any log exists; returns exit code 1."""
    sys.stderr.write(format_line("ERROR", tag, message + (f" (hint: {hint})" if hint else "")))
    return 1
