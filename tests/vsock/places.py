"""Where the two ends of a test's link meet. TEST_TRANSPORT in the environment says of which kind places are: `unix`
(default), or `vsock`: AF_VSOCK within one machine, which needs the kernel's vsock_loopback (see `tests/vm`)."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vm0.vsock_host import UnixAddress, VsockAddress
from vm0.vsock_host.address import Address

LOCAL_CID = 1  # VMADDR_CID_LOCAL
FIRST_PORT = 1000
TRANSPORT = os.environ.get("TEST_TRANSPORT", "unix")
# What dialling gives when nobody listens (any more).
NOBODY = (ConnectionRefusedError, ConnectionResetError, FileNotFoundError)

_ports = itertools.count(FIRST_PORT)


class Place(Protocol):
    @property
    def option(self) -> str:
        """For the guest's --connect."""
        ...

    @property
    def address(self) -> Address:
        """For the host's listener."""
        ...

    async def dial(self) -> socket.socket:
        """As a guest does. Raises OSError."""
        ...


@dataclass(frozen=True)
class UnixPlace:
    path: Path

    @property
    def option(self) -> str:
        return f"unix:{self.path}"

    @property
    def address(self) -> Address:
        return UnixAddress(str(self.path))

    async def dial(self) -> socket.socket:
        return await _dialled(socket.AF_UNIX, str(self.path))


@dataclass(frozen=True)
class VsockPlace:
    port: int

    @property
    def option(self) -> str:
        return f"vsock:{LOCAL_CID}:{self.port}"

    @property
    def address(self) -> Address:
        return VsockAddress(port=self.port)

    async def dial(self) -> socket.socket:
        return await _dialled(socket.AF_VSOCK, (LOCAL_CID, self.port))


def new_place(folder: Path) -> Place:
    """One that nobody used before."""
    number = next(_ports)
    return VsockPlace(number) if TRANSPORT == "vsock" else UnixPlace(folder / f"{number}.sock")


async def _dialled(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)  # type: ignore[arg-type]  # as for the guest's
    except OSError:
        sock.close()
        raise
    return sock
