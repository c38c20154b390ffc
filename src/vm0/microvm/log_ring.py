"""The last of what a guest's console or a VMM printed: whatever it prints, and however much."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque

RING_BYTES = 64 * 1024
PIECE_BYTES = 16 * 1024


class LogRing:
    """Keeps the newest `limit_bytes`; `lines_dropped` older bytes are counted, not kept."""

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.total = 0

    def append(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        self.total += len(data)
        while self._size - len(self._pieces[0]) >= self._limit_bytes:
            self._size -= len(self._pieces.popleft())

    def tail(self, limit_bytes: int = 4096) -> str:
        """The end of it as text, from the start of a line where that is possible; harmless for a terminal."""
        data = b"".join(self._pieces)
        if len(data) > limit_bytes:
            data = data[-limit_bytes:]
            data = data.partition(b"\n")[2] or data
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        return "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text).strip()


class LogReader:
    """Copies one end of a socket pair into a ring, so that whoever writes to the other end is never held up."""

    def __init__(self, ring: LogRing) -> None:
        self.ring = ring
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._ours: socket.socket | None = ours
        self.theirs: socket.socket | None = theirs  # for the child; `started` closes it here
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(ours, self._read)

    def started(self) -> None:
        """The child has its end: ours of it goes, so that its death is an end of file."""
        if self.theirs is not None:
            self.theirs.close()
            self.theirs = None

    def close(self) -> None:
        """Take what has arrived, then stop. Idempotent."""
        self.started()
        if self._ours is not None:
            self._read()
        self._close()

    def _read(self) -> None:
        sock = self._ours
        while sock is not None:
            try:
                data = sock.recv(PIECE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close()
                return
            self.ring.append(data)
            if self.ring.total % (8 * PIECE_BYTES) < len(data):
                return  # a flood must not hold up the loop

    def _close(self) -> None:
        if self._ours is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self._ours = None
        self.ended.set()
