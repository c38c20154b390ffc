"""Where a guest is waited for: a Unix socket, which is also the host's end of Firecracker's vsock device, or a port of
AF_VSOCK."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import Protocol

from vm0.vsock_host.handshake import HandshakeError

MAX_PATH = 107  # sun_path without its terminating NUL


class Address(Protocol):
    """How a `GuestListener` gets its socket."""

    def listen(self, backlog: int) -> socket.socket:
        """A new listening socket, not blocking, owned by the caller. Raises HandshakeError, OSError."""
        ...

    def admits(self, peer: object) -> bool:
        """May who dialled from there be the guest? The token decides then."""
        ...

    def withdraw(self) -> None:
        """The socket is closed: leave no trace of it. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`path` is 0600, in a directory that only its owner can enter; what was there before is replaced."""

    path: str

    def listen(self, backlog: int) -> socket.socket:
        size = len(os.fsencode(self.path))
        if size > MAX_PATH:
            raise HandshakeError(
                f"socket path of {size} bytes: {self.path}",
                hint=f"the kernel takes {MAX_PATH}; use a shorter state directory",
            )
        self.withdraw()
        return _listening(socket.AF_UNIX, self.path, backlog, mode=0o600)

    def admits(self, peer: object) -> bool:
        return True

    def withdraw(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockAddress:
    """A port of this machine's, on every context id that it has. `guest_cid` None admits any machine, which then needs
    the token as well as every other."""

    port: int
    guest_cid: int | None = None

    def listen(self, backlog: int) -> socket.socket:
        return _listening(socket.AF_VSOCK, (socket.VMADDR_CID_ANY, self.port), backlog)

    def admits(self, peer: object) -> bool:
        return self.guest_cid is None or (isinstance(peer, tuple) and peer[:1] == (self.guest_cid,))

    def withdraw(self) -> None:
        pass


def _listening(family: int, address: str | tuple[int, int], backlog: int, mode: int | None = None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.bind(address)
        if mode is not None:
            os.chmod(str(address), mode)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock
