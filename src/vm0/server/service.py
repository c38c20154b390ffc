"""The server as a service in this process: `running_server` for tests and `vm0 run`, `serve` for `vm0 server`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vm0.contracts import codec
from vm0.contracts.errors import ErrorBody, ErrorCode, ErrorDetail
from vm0.server.app import create_app
from vm0.server.clock import Clock, SystemClock
from vm0.server.config import ServerConfig
from vm0.server.context import ServerContext
from vm0.server.errors import ServerError

log = logging.getLogger("vm0.server")
BACKLOG = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class ServerHandle:
    """A running server: where it listens, and its context for tests and tools in this process."""

    url: str
    host: str
    port: int
    context: ServerContext


class JsonErrorProtocol(H11Protocol):
    """HTTP/1.1 whose answer to a malformed request has the API's error shape as well."""

    def send_400_response(self, msg: str) -> None:
        detail = ErrorDetail(code=ErrorCode.BAD_REQUEST, message="the request is not valid HTTP")
        body = codec.dumps(ErrorBody(error=detail))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way already
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _EmbeddedServer(uvicorn.Server):
    """Leaves signals to whoever runs the process."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@contextlib.asynccontextmanager
async def running_server(
    config: ServerConfig, host: str = "127.0.0.1", port: int = 0, *, clock: Clock | None = None
) -> AsyncIterator[ServerHandle]:
    """A server that answers when the block is entered and has ended when it is left.

    Raises ServerError (with a hint) if the address or the state directory cannot be used. Leaving is bounded by
    `config.shutdown_grace_s`: long polls end at once, other requests get that long.
    """
    with contextlib.closing(bind(host, port)) as listener:
        async with _running_context(config, clock or SystemClock()) as context:
            server = _EmbeddedServer(_uvicorn_config(create_app(context), config))
            task = asyncio.create_task(server.serve(sockets=[listener]), name="vm0-server")
            try:
                await _started(server, task)
                address = listener.getsockname()
                shown = f"[{address[0]}]" if ":" in address[0] else address[0]
                yield ServerHandle(f"http://{shown}:{address[1]}", address[0], address[1], context)
            finally:
                context.notifier.close()  # long polls answer now
                server.should_exit = True
                async with asyncio.timeout(config.shutdown_grace_s + 5):
                    await task


@contextlib.asynccontextmanager
async def _running_context(config: ServerConfig, clock: Clock) -> AsyncIterator[ServerContext]:
    loop = asyncio.get_running_loop()
    context = await loop.run_in_executor(None, lambda: ServerContext(config, clock))
    try:
        await context.start()
        yield context
    finally:
        await context.close()


async def serve(
    config: ServerConfig, host: str, port: int, on_ready: Callable[[ServerHandle], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; the handlers are put back afterwards."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        async with running_server(config, host, port) as handle:
            if on_ready is not None:
                on_ready(handle)
            await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises ServerError that says who or what is in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named: asyncio turns Nagle's delay off only for sockets that say they are TCP
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as exc:
        listener.close()
        code = exc.errno if isinstance(exc, OSError) else None
        hints = {
            errno.EADDRINUSE: "another program listens there; stop it or choose another port with --port",
            errno.EACCES: "ports below 1024 need root; choose another with --port",
            errno.EADDRNOTAVAIL: "this machine does not have that address; 127.0.0.1 and 0.0.0.0 always work",
        }
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ServerError(f"cannot listen on {host} port {port}: {reason}", hint=hints.get(code or 0, "")) from exc
    listener.setblocking(False)
    return listener


def _uvicorn_config(app: object, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=JsonErrorProtocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,  # it would show the signatures of object addresses
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=max(1, round(config.shutdown_grace_s)),
    )


async def _started(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            await task
            raise ServerError("the HTTP server ended while it was starting", hint="see the log above")
        await asyncio.sleep(0.005)
