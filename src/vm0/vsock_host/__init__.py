"""The host's asyncio client of a guest: wait for its connection, then run commands and move files over it.

`address` is where the guest is waited for, `listener` accepts it, `handshake` lets it in, `link` is the connection with
its operations, `process` one command, `files` one transfer, `client` what the rest of the host calls.
"""

from __future__ import annotations

from vm0.vsock_host.address import UnixAddress, VsockAddress
from vm0.vsock_host.client import GuestClient
from vm0.vsock_host.handshake import HandshakeError, shake_hands
from vm0.vsock_host.link import Link
from vm0.vsock_host.listener import GuestListener

__all__ = ["GuestClient", "GuestListener", "HandshakeError", "Link", "UnixAddress", "VsockAddress", "shake_hands"]
