"""What waits to be written to a link: whole frames, as views, in order. Pure; both ends use it."""

from __future__ import annotations

from collections import deque

IOV_MAX = 64  # pieces handed to one writev/sendmsg; far below the kernel's 1024, and enough to fill a socket


class SendQueue:
    """`push` frames, hand `pieces()` to the system call, tell `sent(count)`. `size` is the number of bytes waiting."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()
        self.size = 0

    def push(self, *pieces: bytes | memoryview) -> None:
        for piece in pieces:
            if len(piece):
                self._pieces.append(memoryview(piece))
                self.size += len(piece)

    def pieces(self) -> list[memoryview]:
        """The next pieces to write; empty when nothing waits."""
        if len(self._pieces) <= IOV_MAX:
            return list(self._pieces)
        return [self._pieces[index] for index in range(IOV_MAX)]

    def sent(self, count: int) -> None:
        """The system call took `count` bytes of them."""
        self.size -= count
        while count:
            first = self._pieces[0]
            if count < len(first):
                self._pieces[0] = first[count:]
                return
            count -= len(first)
            self._pieces.popleft()

    def clear(self) -> None:
        self._pieces.clear()
        self.size = 0
