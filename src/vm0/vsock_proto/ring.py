"""A window's worth of memory, used over and over: what has been credited may be overwritten.

Fresh memory for each piece of a large file would cost a page fault for every 4 KiB, more than moving the bytes.
"""

from __future__ import annotations


class Ring:
    """`size` must be the window of the stream: the flow control is what keeps live bytes from being overwritten. Memory
    that a short stream does not reach is never touched."""

    __slots__ = ("_position", "_view")

    def __init__(self, size: int) -> None:
        import mmap  # only here: a link that moves no file does without it

        self._view = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._position = 0

    def room(self, most: int) -> memoryview:
        """The next free piece, up to `most` bytes and up to the end of the memory; to be filled and `advance`d."""
        return self._view[self._position : self._position + most]

    def advance(self, count: int) -> memoryview:
        """The first `count` bytes of the last `room` are filled: returns them and moves on."""
        filled = self._view[self._position : self._position + count]
        self._position = (self._position + count) % len(self._view)
        return filled

    def put(self, data: bytes | memoryview) -> list[memoryview]:
        """Copy `data` in; returns where it is now, in one piece or two."""
        rest = memoryview(data)
        pieces = []
        while rest:
            room = self.room(len(rest))
            room[:] = rest[: len(room)]
            pieces.append(self.advance(len(room)))
            rest = rest[len(room) :]
        return pieces

    def newest(self, count: int) -> list[memoryview]:
        """Where the last `count` bytes are, in order: at most two pieces, however many put them there."""
        start = self._position - count
        pieces = [self._view[start:] if start < 0 else self._view[:0], self._view[max(0, start) : self._position]]
        return [piece for piece in pieces if piece]
