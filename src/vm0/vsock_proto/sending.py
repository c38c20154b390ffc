"""What waits to be written to a link: whole frames, in order. Pure; both ends use it."""

from __future__ import annotations

from collections import deque

IOV_MAX = 64  # pieces handed to one writev/sendmsg; far below the kernel's 1024, and enough to fill a socket
SMALL = 4096  # pieces below this are copied together: an object for each would cost twenty times their bytes
JOINED = 64 * 1024


class SendQueue:
    """`push` frames, hand `pieces()` to the system call, tell `sent(count)`. `size` is the number of bytes waiting.
    Large pieces stay where they are and must not change until they are sent."""

    __slots__ = ("_pieces", "_tail", "size")

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()
        self._tail = bytearray()  # small pieces behind the others, still growing
        self.size = 0

    def push(self, *pieces: bytes | memoryview) -> None:
        for piece in pieces:
            if len(piece) < SMALL:
                self._tail += piece
                if len(self._tail) >= JOINED:
                    self._finish_tail()
            else:
                self._finish_tail()
                self._pieces.append(memoryview(piece))
            self.size += len(piece)

    def pieces(self) -> list[memoryview]:
        """The next pieces to write; empty when nothing waits."""
        self._finish_tail()
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
        self._tail = bytearray()
        self.size = 0

    def _finish_tail(self) -> None:
        if self._tail:
            self._pieces.append(memoryview(self._tail))
            self._tail = bytearray()
