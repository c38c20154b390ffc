"""Waiting for the guest: it dials, the host listens, exactly one connection is let in.

The handshake is under the same deadline. Whoever connects without the token is dropped and does not end the wait; after
the right one the listener is gone and nobody else can connect.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine

from vm0.vsock_host.address import Address
from vm0.vsock_host.client import GuestClient
from vm0.vsock_host.handshake import HandshakeError, shake_hands
from vm0.vsock_host.link import Link

log = logging.getLogger("vm0.vsock_host")

ACCEPT_RETRY_S = 0.2
MAX_CANDIDATES = 8  # connections in their handshake at once; more are closed unread


class GuestListener:
    """An async context manager around a listening socket."""

    def __init__(self, address: Address, *, token: bytes, build: str = "") -> None:
        self._address, self._token, self._build = address, token, build
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._candidates: set[Link] = set()
        self._accepted: asyncio.Future[GuestClient] | None = None
        self._handed_over = False
        self._refusals: list[str] = []

    async def __aenter__(self) -> GuestListener:
        self._accepted = asyncio.get_running_loop().create_future()
        self._socket = sock = self._address.listen(MAX_CANDIDATES)
        self._own(self._accept_all(sock), "vsock listener")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close()
        for link in self._candidates:
            link.close("the listener was closed")
        if self._accepted is not None and not self._accepted.cancel() and not self._handed_over:
            self._accepted.result().close("nobody waited for the guest any more")

    async def accept(self, deadline_s: float) -> GuestClient:
        """The guest, or HandshakeError with what was seen instead. The client belongs to the caller."""
        assert self._accepted is not None, "enter the listener first"
        try:
            async with asyncio.timeout(deadline_s):
                client = await asyncio.shield(self._accepted)
        except TimeoutError:
            seen = "; ".join(self._refusals[-3:]) or "nobody connected"
            raise HandshakeError(f"no guest within {deadline_s:g} s: {seen}") from None
        self._handed_over = True
        return client

    def _own(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_all(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(sock)
            except OSError as exc:  # out of descriptors: those who dialled wait in the backlog
                self._refuse(f"accept failed: {exc}")
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            admitted = self._address.admits(peer)
            if not admitted or len(self._candidates) >= MAX_CANDIDATES:
                connection.close()
                self._refuse("too many connections at once" if admitted else f"not a guest: {peer}")
                continue
            link = Link(connection)
            self._candidates.add(link)
            self._own(self._shake_hands(link), "vsock handshake")

    async def _shake_hands(self, link: Link) -> None:
        """The whole life of a candidate; only the accepted one keeps its connection."""
        assert self._accepted is not None
        try:
            client = await shake_hands(link, token=self._token, build=self._build)
            if self._accepted.done():
                raise HandshakeError("a second guest")
            self._accepted.set_result(client)
            self._candidates.remove(link)  # whose life goes on
            self._close()
        except HandshakeError as exc:
            link.close(f"handshake refused: {exc}")
            self._refuse(str(exc))
            self._candidates.remove(link)

    def _refuse(self, why: str) -> None:
        self._refusals = [*self._refusals[-9:], why]
        log.warning("guest connection refused: %s", why, extra={"action": "guest_refused"})

    def _close(self) -> None:
        """Nobody else gets in."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._address.withdraw()
