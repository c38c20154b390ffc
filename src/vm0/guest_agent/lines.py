"""Lines from a byte stream of any shape, each with a limit, and a file that takes only so many bytes."""

from __future__ import annotations

import os

MAX_LINE_BYTES = 1024 * 1024
MAX_AGENT_LOG_BYTES = 64 * 1024 * 1024


class Line:
    """One line without its end; `cut` says how many bytes were beyond the limit and are gone."""

    __slots__ = ("cut", "data")

    def __init__(self, data: bytes, cut: int = 0) -> None:
        self.data = data
        self.cut = cut


class LineSplitter:
    """Feed it chunks; holds at most one line of `limit` bytes."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._partial = bytearray()
        self._cut = 0

    def feed(self, chunk: bytes) -> list[Line]:
        *ends, rest = chunk.split(b"\n")
        lines = []
        for end in ends:
            self._extend(end)
            lines.append(self._take())
        self._extend(rest)
        return lines

    def feed_tail(self, chunk: bytes, keep: int) -> tuple[int, list[Line]]:
        """Like `feed`, but of many complete lines only about the last `keep`; how many others there were.

        For floods: it costs a search, not an object per line.
        """
        start = len(chunk)
        for _ in range(keep + 1):
            start = chunk.rfind(b"\n", 0, start)
            if start < 0:
                return 0, self.feed(chunk)
        self._partial.clear()
        self._cut = 0
        return chunk.count(b"\n", 0, start + 1), self.feed(chunk[start + 1 :])

    def feed_edges(self, chunk: bytes) -> list[Line]:
        """Like `feed`, but without the lines that both start and end in the chunk."""
        first, last = chunk.find(b"\n"), chunk.rfind(b"\n")
        if first < 0:
            return self.feed(chunk)
        return self.feed(chunk[: first + 1]) + self.feed(chunk[last + 1 :])

    def finish(self) -> list[Line]:
        """The last line, if the stream ended without a newline."""
        return [self._take()] if self._partial or self._cut else []

    def _extend(self, data: bytes) -> None:
        room = self._limit - len(self._partial)
        self._partial += data[:room]
        self._cut += max(0, len(data) - room)

    def _take(self) -> Line:
        line = Line(bytes(self._partial), self._cut)
        self._partial.clear()
        self._cut = 0
        return line


class BoundedFile:
    """Append-only; at its limit it writes one marker line and ignores the rest. Never raises: it is only a copy."""

    def __init__(self, path: str, limit: int = MAX_AGENT_LOG_BYTES) -> None:
        self._left = limit
        self._limit = limit
        try:
            self._fd: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = None

    def write(self, data: bytes) -> None:
        if self._fd is None:
            return
        marker = b""
        if len(data) > self._left:
            data, marker = data[: self._left], f"\n[vm0: the rest is beyond {self._limit} bytes]\n".encode()
        try:
            os.write(self._fd, data + marker)
        except OSError:
            marker = b"failed"
        self._left -= len(data)
        if marker:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
