"""One connection to the host: reads frames into messages, owns all writing."""

from __future__ import annotations

import os

from vm0.vsock_guest.loop import READ, WRITE
from vm0.vsock_proto.connection import Connection
from vm0.vsock_proto.errors import RemoteProtocolError
from vm0.vsock_proto.messages import Data
from vm0.vsock_proto.sending import SendQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm0.vsock_guest.loop import Loop
    from vm0.vsock_proto.codec import Message
    from vm0.vsock_proto.connection import Unknown

MAX_BACKLOG = 8 * 1024 * 1024  # bytes waiting to be sent; above it the host's requests wait, below half they go on
HUNG_UP = "the host closed the link"
READS_PER_WAKE = 4  # then other descriptors get their turn


class Link:
    """Calls `on_message(seq, message)` for each message and `on_closed(why)` once, after which it is dead."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_message: Callable[[int, Message | Unknown], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._loop, self._fd = loop, fd
        self._on_message, self._on_closed = on_message, on_closed
        self._connection = Connection("guest")
        self._queue = SendQueue()
        self._writable = True
        self._paused = False
        self._events = READ
        loop.watch(fd, READ, self._ready)

    def send(self, message: Message, seq: int) -> None:
        """Queue a message and write as much as the host takes now; never waits. On a closed link: no effect."""
        if self._fd < 0:
            return
        if isinstance(message, Data):  # as it is, without a copy: it must not change before it is written
            self._queue.push(*self._connection.data_frame(message.flags, message.data, seq))
        else:
            self._queue.push(*self._connection.frame(message, seq))
        if self._writable:
            self._flush()

    def close(self, why: str = "closed") -> None:
        """Drop the connection; idempotent."""
        if self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._queue.clear()
        self._on_closed(why)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self._fd >= 0 and events & ~WRITE and not self._paused:
            self._read()

    def _read(self) -> None:
        decoder = self._connection.decoder
        for _ in range(READS_PER_WAKE):
            try:
                room = decoder.buffer()
                count = os.readv(self._fd, [room])
                if count == 0:
                    return self.close(HUNG_UP)
                decoder.received(count)
                for seq, message in self._connection.messages():
                    self._on_message(seq, message)
                    if self._fd < 0:
                        return None
            except BlockingIOError:
                return None
            except OSError as exc:
                return self.close(f"read failed: {exc}")
            except RemoteProtocolError as exc:
                return self.close(f"protocol error: {exc}")
            if count < len(room):
                return None  # that was all there is
        return None

    def _flush(self) -> None:
        try:
            while pieces := self._queue.pieces():
                self._queue.sent(os.writev(self._fd, pieces))
        except BlockingIOError:
            pass
        except OSError as exc:
            return self.close(f"write failed: {exc}")
        self._writable = not self._queue.size
        self._paused = self._queue.size > (MAX_BACKLOG // 2 if self._paused else MAX_BACKLOG)
        events = (0 if self._writable else WRITE) | (0 if self._paused else READ)
        if events != self._events:
            self._events = events
            self._loop.watch(self._fd, events, self._ready)
        return None
