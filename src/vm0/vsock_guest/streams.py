"""The guest's ends of a command's pipes: output read as far as the host gave credit, input written as it is taken."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from collections import deque

from vm0.vsock_guest.loop import READ, WRITE
from vm0.vsock_proto.flow import ReceiveWindow, SendWindow
from vm0.vsock_proto.messages import OUTPUT_WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm0.vsock_guest.loop import Loop

READ_SIZE = 64 * 1024  # what a pipe holds


class OutputPipe:
    """Delivers up to `limit` bytes under credit and throws the rest away, so that the command is never blocked by a
    limit. Owns `fd`. `on_end` is called once, when the stream ended by itself."""

    def __init__(
        self, loop: Loop, fd: int, limit: int, deliver: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._loop, self._fd, self._limit = loop, fd, limit
        self._deliver, self._on_end = deliver, on_end
        self._window = SendWindow(OUTPUT_WINDOW)
        self._due = 0
        self.total = 0
        self.truncated = False

    @property
    def open(self) -> bool:
        return self._fd >= 0

    def stalled(self) -> bool:
        """The host has to give credit before more is read."""
        return self._limit > 0 and self._window.available == 0

    def start(self) -> None:
        if self._fd >= 0:
            self._loop.watch(self._fd, 0 if self.stalled() else READ, self._ready)

    def writer_ended(self) -> None:
        """What is in the pipe at this moment is the command's own output, which `due` counts down."""
        if self._fd >= 0:
            size = fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4))
            self._due = int.from_bytes(size, sys.byteorder)

    @property
    def due(self) -> bool:
        """Output of the ended command is still to be delivered, however long the host takes to give credit for it."""
        return self._fd >= 0 and self._due > 0

    def give_up(self) -> bool:
        """Close; True if somebody holds the other side open."""
        try:
            held = bool(os.read(self._fd, 1))
        except BlockingIOError:
            held = True
        except OSError:  # a terminal's end
            held = False
        self.close()
        return held

    def grant(self, amount: int) -> None:
        self._window.grant(amount)
        self.start()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ready(self, events: int) -> None:
        if self.stalled():
            # Only a hang-up can wake us here. Not watching at all until credit comes keeps the loop from spinning.
            self._loop.unwatch(self._fd)
            return
        size = min(READ_SIZE, self._window.available) if self._limit else READ_SIZE
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other side of the terminal is closed
            data = b""
        if not data:
            self.close()
            self._on_end()
            return
        self.total += len(data)
        self._due -= len(data)
        kept = data[: self._limit] if len(data) > self._limit else data
        self.truncated |= len(kept) < len(data)
        if kept:
            self._limit -= len(kept)
            self._window.spend(len(kept))
            self._deliver(kept)
        if self.stalled():
            self.start()


class InputPipe:
    """Writes what the host sends, as fast as the command takes it, and gives credit back for what is written."""

    def __init__(self, loop: Loop, fd: int, give_credit: Callable[[int], None]) -> None:
        os.set_blocking(fd, False)
        self._loop, self._fd, self._give_credit = loop, fd, give_credit
        self._window = ReceiveWindow(OUTPUT_WINDOW)
        self._pending: deque[memoryview] = deque()
        self._streaming = True
        self._last = False

    def preload(self, data: bytes, *, hold_open: bool) -> None:
        """The whole input at once; `hold_open` for a terminal, where closing our end would hang it up."""
        self._streaming = False
        self._last = not hold_open
        if data:
            self._pending.append(memoryview(data))

    def start(self) -> None:
        self._write()

    def feed(self, data: bytes, *, last: bool) -> None:
        """Raises RemoteProtocolError for more than the window."""
        self._window.received(len(data))
        if self._fd < 0:  # the command closed its input; what it does not want counts as consumed
            self._consumed(len(data))
            return
        if data:
            self._pending.append(memoryview(data))
        self._last |= last
        self._write()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._pending.clear()

    def _write(self) -> None:
        try:
            while self._pending:
                first = self._pending[0]
                count = os.write(self._fd, first)
                self._pending[0] = first[count:]
                if count == len(first):
                    self._pending.popleft()
                self._consumed(count)
        except BlockingIOError:
            self._loop.watch(self._fd, WRITE, lambda _events: self._write())
            return
        except OSError:  # EPIPE: nobody reads any more
            unwanted = sum(len(piece) for piece in self._pending)
            self.close()
            self._consumed(unwanted)
            return
        self._loop.unwatch(self._fd)
        if self._last:
            self.close()

    def _consumed(self, count: int) -> None:
        credit = self._window.consumed(count) if self._streaming else 0
        if credit:
            self._give_credit(credit)
