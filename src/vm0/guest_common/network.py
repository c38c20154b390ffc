"""The guest's network, by ioctl: starting `ip` for each step would take half a second of an emulated machine.

Needs root. Each function raises OSError and may be called again.
"""

from __future__ import annotations

# Not `socket`: the tables of enums that it makes cost more than all that is done here.
import _socket
import errno
import fcntl
import struct

# linux/sockios.h
SIOCADDRT, SIOCDELRT = 0x890B, 0x890C
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCSIFADDR, SIOCSIFNETMASK = 0x8916, 0x891C
IFF_UP = 0x1  # linux/if.h
RTF_UP, RTF_GATEWAY = 0x1, 0x2  # linux/route.h
AF_INET = 2
# struct ifreq: name, then an address or flags. struct rtentry: padding, destination, gateway, mask, flags, padding,
# metric, and fields that stay zero (device, mtu, window, irtt).
IFREQ_ADDRESS, IFREQ_FLAGS = "16s16s8x", "16sH22x"
RTENTRY = "@L16s16s16sHhLPhPLLH"


def bring_up(interface: str) -> None:
    with _Control() as sock:
        request = fcntl.ioctl(sock.fileno(), SIOCGIFFLAGS, struct.pack(IFREQ_FLAGS, interface.encode(), 0))
        flags = struct.unpack(IFREQ_FLAGS, request)[1]
        fcntl.ioctl(sock.fileno(), SIOCSIFFLAGS, struct.pack(IFREQ_FLAGS, interface.encode(), flags | IFF_UP))


def set_address(interface: str, address: str, prefix: int) -> None:
    """Instead of the first address that it had, whose routes go with it."""
    mask = ".".join(str((0xFFFFFFFF << (32 - prefix) >> shift) & 0xFF) for shift in (24, 16, 8, 0))
    with _Control() as sock:
        for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, mask)):
            fcntl.ioctl(sock.fileno(), request, struct.pack(IFREQ_ADDRESS, interface.encode(), _sockaddr(value)))


def set_default_route(gateway: str) -> None:
    """Instead of every default route that was there; the gateway must be in reach."""
    with _Control() as sock:
        try:
            while True:
                fcntl.ioctl(sock.fileno(), SIOCDELRT, _route("0.0.0.0", RTF_UP))
        except OSError as exc:
            if exc.errno != errno.ESRCH:
                raise
        fcntl.ioctl(sock.fileno(), SIOCADDRT, _route(gateway, RTF_UP | RTF_GATEWAY))


class _Control(_socket.socket):
    """A socket that is there for its ioctls."""

    def __init__(self) -> None:
        super().__init__(AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)

    def __enter__(self) -> _Control:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _sockaddr(address: str) -> bytes:
    return struct.pack("=HH4s8x", AF_INET, 0, _socket.inet_pton(AF_INET, address))


def _route(gateway: str, flags: int) -> bytes:
    anything = _sockaddr("0.0.0.0")
    return struct.pack(RTENTRY, 0, anything, _sockaddr(gateway), anything, flags, 0, 0, 0, 0, 0, 0, 0, 0)
