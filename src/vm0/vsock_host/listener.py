"""Waiting for the guest: it dials, the host listens, exactly one connection is let in.

The handshake, all under one deadline: *ready* with the expected token and build, then a *ping* that is answered, which
proves that the guest's loop reads and did not only connect. Whoever connects without the token is dropped and does not
end the wait; after the right one the listener is gone and nobody else can connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket

from vm0.sandbox import SandboxError, SandboxOperationError
from vm0.vsock_host.client import GuestClient
from vm0.vsock_host.link import Link

log = logging.getLogger("vm0.vsock_host")

MAX_PATH = 107  # sun_path without its terminating NUL
MAX_CANDIDATES = 8  # connections in their handshake at once; more are closed unread


class HandshakeError(SandboxError):
    """no guest completed the handshake"""


class GuestListener:
    """An async context manager around the socket `path` (0600, in a directory that only its owner can enter)."""

    def __init__(self, path: str, *, token: bytes, build: str = "") -> None:
        self._path, self._token, self._build = path, token, build
        self._server: asyncio.Server | None = None
        self._candidates: set[asyncio.Task[None]] = set()
        self._accepted: asyncio.Future[GuestClient] | None = None
        self._refusals: list[str] = []

    async def __aenter__(self) -> GuestListener:
        if len(os.fsencode(self._path)) > MAX_PATH:
            raise HandshakeError(
                f"socket path of {len(os.fsencode(self._path))} bytes: {self._path}",
                hint=f"the kernel takes {MAX_PATH}; use a shorter state directory",
            )
        self._accepted = asyncio.get_running_loop().create_future()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            sock.bind(self._path)
            os.chmod(self._path, 0o600)
            self._server = await asyncio.get_running_loop().create_unix_server(self._on_connection, sock=sock)
        except BaseException:
            sock.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._close()
        for task in list(self._candidates):
            task.cancel()
        await asyncio.gather(*self._candidates, return_exceptions=True)
        if self._accepted is not None:
            self._accepted.cancel()

    async def accept(self, deadline_s: float) -> GuestClient:
        """The guest, or HandshakeError with what was seen instead. The client belongs to the caller."""
        assert self._accepted is not None, "enter the listener first"
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(self._accepted)
        except TimeoutError:
            seen = "; ".join(self._refusals[-3:]) or "nobody connected"
            raise HandshakeError(f"no guest within {deadline_s:g} s: {seen}") from None

    def _on_connection(self) -> Link:
        link = Link()
        task = asyncio.get_running_loop().create_task(self._shake_hands(link), name="vsock handshake")
        self._candidates.add(task)
        task.add_done_callback(self._candidates.discard)
        return link

    async def _shake_hands(self, link: Link) -> None:
        """The whole life of a candidate; only the accepted one keeps its connection."""
        assert self._accepted is not None
        try:
            if len(self._candidates) > MAX_CANDIDATES or self._accepted.done():
                raise HandshakeError("one connection too many")
            client = await self._checked(link)
            if self._accepted.done():
                raise HandshakeError("a second guest")
            self._accepted.set_result(client)
            self._close()
        except asyncio.CancelledError:
            link.close("the listener was closed")
            if not self._accepted.cancelled() and not link.lost.done():
                raise
            self._refuse("it went away before it said ready")
        except (HandshakeError, SandboxOperationError) as exc:
            link.close(f"handshake refused: {exc}")
            self._refuse(str(exc))

    async def _checked(self, link: Link) -> GuestClient:
        ready = await link.ready
        if not hmac.compare_digest(ready.token, self._token):
            raise HandshakeError("wrong token")
        if self._build and ready.build != self._build:
            raise HandshakeError(f"guest code is of build {ready.build!r}, this host needs {self._build!r}")
        client = GuestClient(link, ready)
        await client.ping()
        return client

    def _refuse(self, why: str) -> None:
        self._refusals = [*self._refusals[-9:], why]
        log.warning("guest connection refused: %s", why, extra={"action": "guest_refused"})

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
