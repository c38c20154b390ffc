"""The bridge's side towards guests: listeners that know which guest a connection comes from, with limits per guest.

A Unix socket belongs to one guest; on an address, a guest is known by its source address, and a connection from any
other is dropped before a byte of it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from vm0.contracts import codec
from vm0.contracts.errors import ErrorBody, ErrorCode, ErrorDetail
from vm0.sandbox import ApiAccess, UnixSocket

MAX_CONNECTIONS = 64  # of one guest; the guest programs use fewer than ten
MAX_WHOLE_BODIES = 8  # of one guest at a time, 8 MiB each: what it can make the runner hold
HEADER_LIMIT_S = 15.0  # for the head of a request, and between two requests of a connection
CLOSE_LIMIT_S = 5.0
MAX_LOG_LINES = 50  # about one guest
ONLY_GUEST = ""  # the peer name of every connection to a Unix socket


class Guest:
    """One registered sandbox."""

    def __init__(self, run_id: str, token: str) -> None:
        self.run_id, self.token = run_id, token
        self.whole_bodies = asyncio.Semaphore(MAX_WHOLE_BODIES)
        self.transports: set[asyncio.Transport] = set()
        self._lines_left = MAX_LOG_LINES

    def may_log(self) -> bool:
        """A guest decides how often it is refused; it must not decide how much we log."""
        self._lines_left -= 1
        return self._lines_left >= 0


class BridgeConnection(web.RequestHandler):
    """aiohttp's connection, except that its own errors (malformed HTTP) are errors of the API."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:  # too late: the connection must break, so that nobody takes it for complete
            raise ConnectionError("the answer had begun")
        if status == 400:
            return error_answer(400, ErrorCode.BAD_REQUEST, "the request is not valid HTTP")
        if exc is not None:
            self.log_exception("bridge request failed", exc_info=exc)
        return error_answer(500, ErrorCode.INTERNAL_ERROR, "the bridge failed")


class Listener(web.Server):
    """One listening socket and the guests that may use it, by peer address."""

    def __init__(self, serve: Callable[[Listener, web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(
            functools.partial(serve, self),
            handler_cancellation=True,  # a guest that is gone ends its request upstream as well
            access_log=None,
            auto_decompress=False,  # bodies pass as they are
            keepalive_timeout=HEADER_LIMIT_S,
            tcp_keepalive=False,
            lingering_time=1.0,
        )
        self.guests: dict[str, Guest] = {}
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    def __call__(self) -> BridgeConnection:
        return BridgeConnection(self, loop=self._loop, **self._kwargs)

    async def listen(self, access: ApiAccess) -> None:
        """Raises OSError."""
        if isinstance(access, UnixSocket):
            self._path = Path(access.path)
            _prepare_socket(self._path)
            self._server = await self._loop.create_unix_server(self, path=access.path, start_serving=False)
            os.chmod(access.path, 0o600)
            await self._server.start_serving()
        else:
            self._server = await self._loop.create_server(self, host=access.listen_ip, port=access.listen_port)

    def guest_of(self, transport: asyncio.BaseTransport | None) -> Guest | None:
        if transport is None:
            return None
        peer = transport.get_extra_info("peername")
        return self.guests.get(peer[0] if isinstance(peer, tuple) else ONLY_GUEST)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        guest = self.guest_of(transport)
        if guest is None or len(guest.transports) >= MAX_CONNECTIONS:
            transport.abort()
        else:
            guest.transports.add(transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        transport = self._connections.get(handler)
        super().connection_lost(handler, exc)
        if transport is None:
            return
        for guest in self.guests.values():
            guest.transports.discard(transport)

    def drop(self, peer: str) -> None:
        """Forget a guest and break its connections."""
        guest = self.guests.pop(peer, None)
        for transport in list(guest.transports) if guest else []:
            transport.abort()

    async def close(self) -> None:
        """Idempotent and bounded; removes the socket's file."""
        for peer in list(self.guests):
            self.drop(peer)
        if self._server is not None:
            self._server.close()
            await self.shutdown(timeout=CLOSE_LIMIT_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await self._server.wait_closed()
            self._server = None
        if self._path is not None:
            _remove_socket(self._path)
            self._path = None


def peer_of(access: ApiAccess) -> str:
    """The key under which the guests of an access are known."""
    return ONLY_GUEST if isinstance(access, UnixSocket) else access.source_ip


def error_answer(status: int, code: ErrorCode, message: str) -> web.Response:
    """An error of the API. The connection ends with it: what is left of the request's body is not read."""
    body = codec.dumps(ErrorBody(error=ErrorDetail(code=code, message=message)))
    answer = web.Response(status=status, body=body, content_type="application/json")
    answer.force_close()
    return answer


def _prepare_socket(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_socket(path)


def _remove_socket(path: Path) -> None:
    """Remove a socket of a former life; anything else that has its name stays and makes the bind fail."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            path.unlink()
