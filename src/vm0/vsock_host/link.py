"""One connection to a guest: frames to operations and back.

There is one state: open with its table of operations, or lost with the reason. Losing the link ends every operation
with that reason and refuses new ones, so nothing can be registered that nobody will answer. Only the link writes to
its socket, from a queue of whole frames, so cancelling a caller cannot leave half a frame on the wire.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from vm0.sandbox import Reason, SandboxOperationError
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.connection import Connection, Unknown
from vm0.vsock_proto.errors import REASONS, GuestRestarted, LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.sending import SendQueue

log = logging.getLogger("vm0.vsock_host")

HIGH_WATER, LOW_WATER = 1024 * 1024, 256 * 1024  # bytes queued at which senders of data wait, and go on


class Operation(Protocol):
    """What waits for the messages of one seq. Neither method may raise or wait."""

    def on_message(self, message: Message) -> bool:
        """Take a message; True when it was the operation's last."""
        ...

    def on_lost(self, error: SandboxOperationError) -> None:
        """The link is gone: no more messages."""
        ...


class Link:
    """Owns the connected socket. `ready` resolves to the guest's first message, `lost` to the reason of the end. On a
    `resumed` link, that of a restored guest, there is no first message: see `vsock_proto.connection`."""

    def __init__(self, sock: socket.socket, *, resumed: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        sock.setblocking(False)
        self._connection = Connection("host", resumed=resumed)
        self._operations: dict[int, Operation] = {}
        self._next_seq = 1
        self._queue = SendQueue()
        self._writing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._why = ""
        self.ready: asyncio.Future[m.Ready] = self._loop.create_future()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(sock, self._read)

    # the operations call these

    def begin(self, operation: Operation, message: Message, name: str) -> int:
        """Register an operation and send its first message; returns its seq."""
        if self.lost.done():
            raise self._error(name)
        seq = self._free_seq()
        self._operations[seq] = operation
        try:
            self.send(message, seq)
        except LocalProtocolError as exc:
            del self._operations[seq]
            raise SandboxOperationError(name, Reason.HOST, str(exc)) from exc
        return seq

    def send(self, message: Message, seq: int) -> None:
        """Queue a message and write what the socket takes now. On a lost link: no effect (its operations know)."""
        if not self.lost.done():
            self._push(*self._connection.frame(message, seq))

    def send_data(self, flags: int, data: bytes | memoryview, seq: int) -> None:
        """`send` of a *data* message without copying; `data` must not change before it is written."""
        if not self.lost.done():
            self._push(*self._connection.data_frame(flags, data, seq))

    async def writable(self) -> None:
        """Wait until little enough is queued; returns at once on a lost link."""
        await self._writable.wait()

    def close(self, why: str = "closed by the host") -> None:
        """End the link and every operation on it; idempotent. What is unsent belongs to operations that then failed."""
        if self.lost.done():
            return
        self._why = why
        self.lost.set_result(why)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._queue.clear()
        self._writable.set()
        if not self.ready.done():
            self.ready.cancel()
        operations, self._operations = self._operations, {}
        for operation in operations.values():
            operation.on_lost(self._error("operation"))

    @property
    def operations(self) -> int:
        return len(self._operations)

    def _deliver(self, seq: int, message: Message | Unknown) -> None:
        if isinstance(message, Unknown):
            raise RemoteProtocolError(f"unknown message type 0x{message.type:02X}")
        if isinstance(message, m.Ready):
            if not self.ready.done():
                self.ready.set_result(message)
            return
        operation = self._operations.get(seq)
        if operation is None:
            raise RemoteProtocolError(f"{type(message).__name__} for seq {seq}, which is no open operation")
        if operation.on_message(message):
            del self._operations[seq]

    def _read(self) -> None:
        decoder = self._connection.decoder
        try:
            count = self._sock.recv_into(decoder.buffer())
            if count == 0:
                return self.close("the guest closed the connection")
            decoder.received(count)
            for seq, message in self._connection.messages():
                self._deliver(seq, message)
                if self.lost.done():
                    return None
        except BlockingIOError:
            pass
        except OSError as exc:
            self.close(f"connection lost: {exc}")
        except GuestRestarted as exc:  # a VM's init starts a guest endpoint that died once more, on the same port
            self.close(f"the guest endpoint died: {exc}")
        except RemoteProtocolError as exc:
            self.close(f"protocol error: {exc}")
        return None

    def _push(self, *pieces: bytes | memoryview) -> None:
        self._queue.push(*pieces)
        if not self._writing:
            self._flush()
        elif self._queue.size > HIGH_WATER:
            self._writable.clear()

    def _flush(self) -> None:
        """Write until the socket is full or nothing is left; only this touches the socket's sending side."""
        try:
            while pieces := self._queue.pieces():
                self._queue.sent(self._sock.sendmsg(pieces))
        except BlockingIOError:
            pass
        except OSError as exc:
            return self.close(f"connection lost: {exc}")
        waiting = self._queue.size > 0
        if waiting != self._writing:
            self._writing = waiting
            if waiting:
                self._loop.add_writer(self._sock, self._flush)
            else:
                self._loop.remove_writer(self._sock)
        if self._queue.size > HIGH_WATER:
            self._writable.clear()
        elif self._queue.size <= LOW_WATER:
            self._writable.set()
        return None

    def _error(self, name: str) -> SandboxOperationError:
        reason = Reason.PROTOCOL if self._why.startswith("protocol error") else Reason.CRASHED
        return SandboxOperationError(name, reason, self._why)

    def _free_seq(self) -> int:
        while True:
            seq = self._next_seq
            self._next_seq = seq % 0xFFFFFFFF + 1  # 1 to 2^32-1
            if seq not in self._operations:
                return seq


class Request:
    """An operation with one answer. `answer()` waits for it."""

    def __init__(self, link: Link, name: str) -> None:
        self._link, self._name = link, name
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def on_message(self, message: Message) -> bool:
        if not self._answer.done():
            if isinstance(message, m.Error):
                self._answer.set_exception(guest_error(self._name, message))
            else:
                self._answer.set_result(message)
        return True

    def on_lost(self, error: SandboxOperationError) -> None:
        if not self._answer.done():
            self._answer.set_exception(SandboxOperationError(self._name, error.reason, error.detail))

    async def answer(self, message: Message, limit_s: float) -> Message:
        """Send and wait. After a cancellation or time-out the late answer is dropped when it comes."""
        self._link.begin(self, message, self._name)
        try:
            async with asyncio.timeout(limit_s):
                return await self._answer
        except TimeoutError:
            raise SandboxOperationError(self._name, Reason.TIMEOUT, f"no answer within {limit_s:g} s") from None


def guest_error(name: str, message: m.Error) -> SandboxOperationError:
    """The guest's refusal as an exception; `code` is its word for it."""
    code = REASONS.get(message.reason, "internal")
    return SandboxOperationError(name, Reason.GUEST, f"{message.text} [{code}]", code=code)


def unexpected(name: str, message: Message) -> RemoteProtocolError:
    return RemoteProtocolError(f"{type(message).__name__} does not answer {name}")
