"""The host's asyncio client of a guest: wait for its connection, then run commands and move files over it.

`listener` accepts the guest and shakes hands, `link` is the connection with its operations, `process` one command,
`files` one transfer, `client` what the rest of the host calls.
"""

from __future__ import annotations

from vm0.vsock_host.client import GuestClient
from vm0.vsock_host.listener import GuestListener, HandshakeError

__all__ = ["GuestClient", "GuestListener", "HandshakeError"]
