"""One connection to a guest: frames to operations and back.

There is one state: open with its table of operations, or lost with the reason. Losing the link ends every operation
with that reason and refuses new ones, so nothing can be registered that nobody will ever answer. The transport owns the
socket's writes and takes whole frames, so cancelling a caller cannot leave half a frame on the wire.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

from vm0.sandbox import Reason, SandboxOperationError
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.connection import Connection, Unknown
from vm0.vsock_proto.errors import REASONS, LocalProtocolError, RemoteProtocolError

log = logging.getLogger("vm0.vsock_host")

SMALL_PAYLOAD = 16 * 1024  # below it header and payload are joined: one system call instead of two


class Operation(Protocol):
    """What waits for the messages of one seq. Neither method may raise or wait."""

    def on_message(self, message: Message) -> bool:
        """Take a message; True when it was the operation's last."""
        ...

    def on_lost(self, error: SandboxOperationError) -> None:
        """The link is gone: no more messages."""
        ...


class Link(asyncio.BufferedProtocol):
    """`ready` resolves to the guest's first message; `lost` to the reason when the connection ends."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._connection = Connection("host")
        self._operations: dict[int, Operation] = {}
        self._next_seq = 1
        self._transport: asyncio.WriteTransport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._why = ""
        self.ready: asyncio.Future[m.Ready] = loop.create_future()
        self.lost: asyncio.Future[str] = loop.create_future()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.decoder.received(nbytes)
        try:
            for seq, message in self._connection.messages():
                self._deliver(seq, message)
        except RemoteProtocolError as exc:
            self.close(f"protocol error: {exc}")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc}" if exc else "the guest closed the connection")

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
        """Queue a message. On a lost link: no effect (the operation has been told)."""
        if self._transport is None or self.lost.done():
            return
        header, payload = self._connection.frame(message, seq)
        if len(payload) < SMALL_PAYLOAD:
            self._transport.write(header + payload)
        else:
            self._transport.write(header)
            self._transport.write(payload)

    async def writable(self) -> None:
        """Wait until the transport wants more; returns at once on a lost link."""
        await self._writable.wait()

    def close(self, why: str = "closed by the host") -> None:
        """End the link and every operation on it; idempotent."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()  # what is unsent belongs to operations that have just failed

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

    def _end(self, why: str) -> None:
        if self.lost.done():
            return
        self._why = why
        self.lost.set_result(why)
        self._writable.set()
        if not self.ready.done():
            self.ready.cancel()
        operations, self._operations = self._operations, {}
        for operation in operations.values():
            operation.on_lost(self._error("operation"))

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
            self._answer.set_exception(SandboxOperationError(self._name, error.reason, str(error)))

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
