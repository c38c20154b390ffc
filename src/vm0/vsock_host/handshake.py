"""How a connection becomes a guest: *ready* with the expected token and build, then a *ping* that is answered, which
proves that the guest's loop reads and did not only connect."""

from __future__ import annotations

import asyncio
import hmac

from vm0.sandbox import SandboxError, SandboxOperationError
from vm0.vsock_host.client import GuestClient
from vm0.vsock_host.link import Link


class HandshakeError(SandboxError):
    """no guest completed the handshake"""


async def shake_hands(link: Link, *, token: bytes, build: str) -> GuestClient:
    """The guest behind a new connection; `build` "" accepts any. Raises HandshakeError with what is wrong; the caller
    closes the link then, and bounds the time."""
    await asyncio.wait((link.ready, link.lost), return_when=asyncio.FIRST_COMPLETED)
    if link.lost.done():
        raise HandshakeError(f"it went away before it said ready ({link.lost.result()})")
    ready = link.ready.result()
    if not hmac.compare_digest(ready.token, token):
        raise HandshakeError("wrong token")
    if build and ready.build != build:
        raise HandshakeError(
            f"guest code is of build {ready.build!r}, this host needs {build!r}",
            hint="build the image again with `vm0 image build`",
        )
    client = GuestClient(link)
    try:
        await client.ping()
    except SandboxOperationError as exc:
        raise HandshakeError(str(exc)) from exc
    return client
