"""The bridge: guests reach the API through it, and it adds the token that they never see.

::

    guest ── Unix socket, or address of its own ──▶ listener ── which guest? ──▶ policy ── allowed? ──▶ server
                                                                                             + token of that run

One reverse proxy per runner. Nothing of a request is forwarded but its method, its checked target, a few headers and
its body; each is written anew, so no two readers can disagree about where a request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

from vm0.contracts.errors import ErrorCode
from vm0.runner.bridge_listener import Guest, Listener, error_answer, peer_of
from vm0.runner.bridge_policy import ANSWER_HEADERS, REQUEST_HEADERS, Denial, Route, judge, passed_headers
from vm0.runner.errors import RunnerError
from vm0.sandbox import ApiAccess, UnixSocket

log = logging.getLogger(__name__)

CONNECT_LIMIT_S = 5.0
JSON_BODY_LIMIT_S = 60.0  # to receive a whole body from the guest
JSON_ANSWER_LIMIT_S = 120.0  # a commit of a large version takes its time
STALL_LIMIT_S = 60.0  # without a byte, in either direction
PIECE_BYTES = 256 * 1024


class BridgeError(RunnerError):
    """the bridge cannot listen for a guest"""


@dataclass(frozen=True, slots=True)
class BridgeHandle:
    """One registration; `Bridge.unregister` ends it."""

    run_id: str
    access: ApiAccess


class BodyTooLarge(Exception):
    """the guest sent more than the route takes"""


class Bridge:
    """Use as an async context manager; leaving it ends every registration."""

    def __init__(self, server_url: str, *, stall_limit_s: float = STALL_LIMIT_S) -> None:
        self._server_url = server_url.rstrip("/")
        self._stall_limit_s = stall_limit_s
        self._session: aiohttp.ClientSession | None = None
        self._listeners: dict[str, Listener] = {}
        self._registering = asyncio.Lock()

    async def __aenter__(self) -> Bridge:
        # Connections to the server are bounded per guest at the listener; a limit here would let one starve others.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for listener in list(self._listeners.values()):
            await listener.close()
        self._listeners.clear()
        if self._session is not None:
            await self._session.close()

    async def register(self, run_id: str, token: str, access: ApiAccess) -> BridgeHandle:
        """Serve the guest behind `access` as this run. Raises BridgeError; then nothing is left of it."""
        async with self._registering:
            key = _listener_key(access)
            listener = self._listeners.get(key)
            if listener is None:
                listener = Listener(self._serve)
                try:
                    await listener.listen(access)
                except BaseException as exc:
                    await listener.close()
                    if not isinstance(exc, OSError):
                        raise
                    raise BridgeError(f"bridge cannot listen at {key}: {exc.strerror or exc}") from exc
                self._listeners[key] = listener
            if peer_of(access) in listener.guests:
                raise BridgeError(f"bridge address {key} is in use by another run")
            listener.guests[peer_of(access)] = Guest(run_id, token)
        return BridgeHandle(run_id, access)

    async def unregister(self, handle: BridgeHandle) -> None:
        """End a registration and its connections. Idempotent."""
        async with self._registering:
            key = _listener_key(handle.access)
            listener = self._listeners.get(key)
            guest = listener.guests.get(peer_of(handle.access)) if listener else None
            if listener is None or guest is None or guest.run_id != handle.run_id:
                return
            listener.drop(peer_of(handle.access))
            if not listener.guests:
                del self._listeners[key]
                await listener.close()

    async def _serve(self, listener: Listener, request: web.BaseRequest) -> web.StreamResponse:
        guest = listener.guest_of(request.transport)
        if guest is None:
            return error_answer(403, ErrorCode.FORBIDDEN, "no run is registered for this connection")
        route = judge(request.method, request.raw_path)
        if isinstance(route, Denial):
            if guest.may_log():
                extra = {"action": "bridge_denied", "run_id": guest.run_id}
                log.info("denied %s: %s", request.method, route.message, extra=extra)
            return error_answer(route.status, route.code, route.message)
        if (request.content_length or 0) > route.max_body_bytes:
            return error_answer(413, ErrorCode.PAYLOAD_TOO_LARGE, f"the limit is {route.max_body_bytes} bytes")
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            return await self._forward(request, route, guest)
        except BodyTooLarge:
            return error_answer(413, ErrorCode.PAYLOAD_TOO_LARGE, f"the limit is {route.max_body_bytes} bytes")
        except web.RequestPayloadError:
            return error_answer(400, ErrorCode.BAD_REQUEST, "the body is not valid HTTP")
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as exc:
            if request.writer.output_size > 0:
                raise ConnectionError("the answer broke off") from exc
            if guest.may_log():
                extra = {"action": "bridge_upstream_failed", "run_id": guest.run_id}
                log.warning("server did not answer a guest: %s", type(exc).__name__, extra=extra)
            return error_answer(502, ErrorCode.UNAVAILABLE, "the server does not answer; try again")

    async def _forward(self, request: web.BaseRequest, route: Route, guest: Guest) -> web.StreamResponse:
        if not route.whole_body:
            return await self._exchange(request, route, guest, self._streamed_body(request, route.max_body_bytes))
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(JSON_BODY_LIMIT_S):
                    await stack.enter_async_context(guest.whole_bodies)
                    body = b"".join([piece async for piece in self._streamed_body(request, route.max_body_bytes)])
            except TimeoutError:
                return error_answer(408, ErrorCode.UNAVAILABLE, "the body did not arrive in time")
            return await self._exchange(request, route, guest, body)

    async def _streamed_body(self, request: web.BaseRequest, max_bytes: int) -> AsyncIterator[bytes]:
        size = 0
        while True:
            async with asyncio.timeout(self._stall_limit_s):
                piece = await request.content.readany()
            if not piece:
                return
            size += len(piece)
            if size > max_bytes:
                raise BodyTooLarge
            yield piece

    async def _exchange(
        self, request: web.BaseRequest, route: Route, guest: Guest, body: bytes | AsyncIterator[bytes]
    ) -> web.StreamResponse:
        if self._session is None:
            raise ConnectionError("the bridge is closed")
        headers = passed_headers(REQUEST_HEADERS, request.headers)
        if route.add_token:
            headers["Authorization"] = f"Bearer {guest.token}"
        data: io.BytesIO | AsyncIterator[bytes] | None = None
        if isinstance(body, bytes):
            data = io.BytesIO(body)  # aiohttp sends it in pieces; of plain bytes it would make one write
        elif request.body_exists:
            data = body
            if request.content_length is not None:
                headers["Content-Length"] = str(request.content_length)
        total_s = JSON_ANSWER_LIMIT_S if route.whole_body else None
        limit = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_LIMIT_S, sock_read=self._stall_limit_s)
        async with self._session.request(
            request.method,
            URL(self._server_url + route.target, encoded=True),
            data=data,
            headers=headers,
            timeout=limit,
            allow_redirects=False,
        ) as upstream:
            if 300 <= upstream.status < 400:
                return error_answer(502, ErrorCode.UNAVAILABLE, "the server redirects, which the API never does")
            return await self._answer(request, upstream)

    async def _answer(self, request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        answer = web.StreamResponse(status=upstream.status, headers=passed_headers(ANSWER_HEADERS, upstream.headers))
        if upstream.content_length is not None:
            answer.content_length = upstream.content_length
        await answer.prepare(request)
        async for piece in upstream.content.iter_chunked(PIECE_BYTES):
            async with asyncio.timeout(self._stall_limit_s):  # a guest that does not read
                await answer.write(piece)
        await answer.write_eof()
        return answer


def _listener_key(access: ApiAccess) -> str:
    if isinstance(access, UnixSocket):
        return access.path
    return f"{access.listen_ip}:{access.listen_port}"
