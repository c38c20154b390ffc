"""One command in the guest: its messages in, its streams and its end out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from vm0.sandbox import Ended, ExecRequest, ExecResult, Reason, SandboxOperationError, StreamResult
from vm0.vsock_host.link import Link, guest_error, unexpected
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.flow import ReceiveWindow, SendWindow

T = TypeVar("T")

ANSWER_S = 30.0  # for the guest to fork and say so
MARGIN_S = 10.0  # on top of a command's own limits, before the guest counts as not answering
ENDED = {
    m.EXITED: Ended.EXITED,
    m.SIGNALLED: Ended.SIGNALLED,
    m.TIMED_OUT: Ended.TIMED_OUT,
    m.CANCELLED: Ended.CANCELLED,
    m.COULD_NOT_START: Ended.COULD_NOT_START,
}


class GuestStream:
    """One output stream. With a limit it collects by itself, up to that many bytes; without, it hands out what arrived
    and gives credit for what was read. So at most the limit or one window is held here, whatever the guest sends."""

    def __init__(self, link: Link, number: int, limit: int | None) -> None:
        self._link, self._number, self._limit = link, number, limit
        self._seq = 0
        self._window = ReceiveWindow(m.OUTPUT_WINDOW)
        self._held = bytearray()  # not a list of pieces: a guest that sends single bytes would fill memory with them
        self._arrived = asyncio.Event()
        self._ended = self._discarding = False
        self._error: SandboxOperationError | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    async def read(self) -> bytes:
        while not self._held:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        piece = bytes(self._held)
        self._held.clear()
        if self._limit is None:
            self._consumed(len(piece))
        return piece

    def collected(self) -> bytes:
        return b"" if self._limit is None else bytes(self._held)

    def discard(self) -> None:
        """Nobody will read this: keep nothing, stop nothing."""
        if self._limit is None:
            self._consumed(len(self._held))
        self._held.clear()
        self._discarding = self._ended = True

    def arrived(self, seq: int, data: bytes) -> None:
        """Raises RemoteProtocolError for more than the credit or the limit."""
        self._seq = seq
        self._window.received(len(data))
        if self._discarding:
            self._consumed(len(data))
            return
        self._held += data
        if self._limit is not None:
            if len(self._held) > self._limit:
                raise RemoteProtocolError(f"over {self._limit} bytes of stream {self._number}")
            self._consumed(len(data))
        self._arrived.set()

    def end(self, error: SandboxOperationError | None = None) -> None:
        self._ended, self._error = True, error
        self._arrived.set()

    def _consumed(self, size: int) -> None:
        credit = self._window.consumed(size)
        if credit:
            self._link.send(m.Credit(self._number, credit), self._seq)

    async def _iterate(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece


class GuestProcess:
    """A command. Made by `start`; implements `vm0.sandbox.Process`."""

    def __init__(self, link: Link, request: ExecRequest) -> None:
        self._link, self._request = link, request
        self._seq = 0
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[int] = loop.create_future()
        self._result: asyncio.Future[ExecResult] = loop.create_future()
        self._stdin_window = SendWindow(m.OUTPUT_WINDOW)
        self._stdin_moved = asyncio.Event()
        self._stdin_closed = not request.stdin_stream
        self.stdout = GuestStream(link, m.STDOUT, request.stdout_limit)
        self.stderr = GuestStream(link, m.STDERR, request.stderr_limit)

    async def start(self) -> GuestProcess:
        """Send the request and wait until the guest has forked. Raises SandboxOperationError(GUEST) if it could not."""
        self._begin()
        try:
            async with asyncio.timeout(ANSWER_S):
                await asyncio.shield(self._started)
        except TimeoutError:
            self._abandon()
            raise SandboxOperationError("exec", Reason.TIMEOUT, f"not started within {ANSWER_S:g} s") from None
        except asyncio.CancelledError:
            self._abandon()
            raise
        if self._result.done() and self._result.exception() is None:
            result = self._result.result()
            if result.ended is Ended.COULD_NOT_START:
                code = "not_found" if result.exit_code == 127 else "permission"
                raise SandboxOperationError("exec", Reason.GUEST, result.diagnostic, code=code)
        return self

    async def run(self) -> ExecResult:
        """Send the request and wait for its end; a command that could not start is a result, not an error."""
        self._begin()
        try:
            return await self.wait()
        except asyncio.CancelledError:
            self._abandon()
            raise

    @property
    def pid(self) -> int:
        return self._started.result()

    async def write_stdin(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._result.done():
            if self._stdin_closed:
                raise SandboxOperationError("stdin", Reason.STATE, "stdin is closed or was not asked for as a stream")
            if not self._stdin_window.available:
                self._stdin_moved.clear()
                await self._stdin_moved.wait()
                continue
            piece = bytes(view[: min(m.MAX_CHUNK, self._stdin_window.available)])
            self._stdin_window.spend(len(piece))
            self._link.send(m.Stdin(0, piece), self._seq)
            view = view[len(piece) :]
            await self._link.writable()

    async def close_stdin(self) -> None:
        if not self._stdin_closed:
            self._stdin_closed = True
            self._link.send(m.Stdin(m.LAST, b""), self._seq)

    async def signal(self, number: int) -> None:
        self._tell(m.Signal(number), "signal")

    async def resize(self, rows: int, columns: int) -> None:
        self._tell(m.Resize(rows, columns), "resize")

    async def cancel(self) -> None:
        self._tell(m.Cancel(), "cancel")

    async def wait(self) -> ExecResult:
        limit = self._limit_s()
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(self._result)
        except TimeoutError:
            self._abandon()
            detail = f"no result {limit:g} s after a command with a limit of {self._request.timeout_s:g} s was sent"
            raise SandboxOperationError("exec", Reason.TIMEOUT, detail) from None

    # the link calls these

    def on_message(self, message: Message) -> bool:
        match message:
            case m.Output(stream=m.STDOUT, data=data):
                self.stdout.arrived(self._seq, data)
            case m.Output(stream=m.STDERR, data=data):
                self.stderr.arrived(self._seq, data)
            case m.Started(pid=pid):
                _resolve(self._started, pid)
            case m.Credit(stream=m.STDIN, amount=amount):
                self._stdin_window.grant(amount)
                self._stdin_moved.set()
            case m.Result():
                self._finish(message)
                return True
            case m.Error():
                self.on_lost(guest_error("exec", message))
                return True
            case _:
                raise unexpected("exec", message)
        return False

    def on_lost(self, error: SandboxOperationError) -> None:
        failure = SandboxOperationError("exec", error.reason, error.detail, code=error.code)
        for future in (self._started, self._result):
            if not future.done():
                future.set_exception(failure)
                future.exception()  # whoever waits gets it; nobody waiting is no bug
        self.stdout.end(failure)
        self.stderr.end(failure)
        self._stdin_moved.set()

    def _begin(self) -> None:
        try:
            message = exec_message(self._request)
        except LocalProtocolError as exc:
            raise SandboxOperationError("exec", Reason.HOST, str(exc)) from exc
        self._seq = self._link.begin(self, message, "exec")

    def _tell(self, message: Message, name: str) -> None:
        try:
            if not self._result.done():
                self._link.send(message, self._seq)
        except LocalProtocolError as exc:  # a number that the field cannot hold
            raise SandboxOperationError(name, Reason.HOST, str(exc)) from exc

    def _abandon(self) -> None:
        """Nobody waits for this command any more: end it in the guest, and let its last messages pass by."""
        if not self._result.done():
            self._link.send(m.Cancel(), self._seq)
        self.stdout.discard()
        self.stderr.discard()

    def _finish(self, result: m.Result) -> None:
        if result.ended not in ENDED:
            raise RemoteProtocolError(f"a command that ended in way {result.ended}")
        self.stdout.end()
        self.stderr.end()
        self._stdin_moved.set()
        _resolve(self._started, 0)
        _resolve(
            self._result,
            ExecResult(
                ended=ENDED[result.ended],
                exit_code=result.exit_code if result.exit_code >= 0 else None,
                signal=result.signal or None,
                duration_s=result.duration_us / 1e6,
                user_cpu_s=result.user_cpu_us / 1e6,
                system_cpu_s=result.system_cpu_us / 1e6,
                max_rss_bytes=result.max_rss_kib * 1024,
                stdout=_stream_result(self.stdout, result.stdout_total, result.flags & m.STDOUT_TRUNCATED),
                stderr=_stream_result(self.stderr, result.stderr_total, result.flags & m.STDERR_TRUNCATED),
                drain_expired=bool(result.flags & m.DRAIN_EXPIRED),
                diagnostic=result.diagnostic,
            ),
        )

    def _limit_s(self) -> float | None:
        request = self._request
        if request.timeout_s is None:
            return None
        # A reader that stops holds the result back; only a command that collects by itself is bound to end in time.
        if request.stdout_limit is None or request.stderr_limit is None:
            return None
        return request.timeout_s + request.grace_s + request.drain_s + MARGIN_S


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def exec_message(request: ExecRequest) -> m.Exec:
    """The wire form of a request."""
    flags = (
        (m.SHELL if request.shell else 0)
        | (m.PTY if request.pty else 0)
        | (m.STDIN_STREAM if request.stdin_stream else 0)
        | (m.MERGE_STDERR if request.merge_stderr else 0)
    )
    return m.Exec(
        flags=flags,
        argv=request.argv,
        env=tuple(request.env.items()),
        cwd=request.cwd,
        user=request.user,
        stdin=request.stdin,
        rows=request.pty.rows if request.pty else 0,
        columns=request.pty.columns if request.pty else 0,
        timeout_ms=0 if request.timeout_s is None else max(1, int(request.timeout_s * 1000)),
        grace_ms=int(request.grace_s * 1000),
        drain_ms=int(request.drain_s * 1000),
        stdout_limit=m.UNLIMITED if request.stdout_limit is None else request.stdout_limit,
        stderr_limit=m.UNLIMITED if request.stderr_limit is None else request.stderr_limit,
    )


def _stream_result(stream: GuestStream, total: int, truncated: int) -> StreamResult:
    return StreamResult(data=stream.collected(), total=total, truncated=bool(truncated))
