"""How the guest reaches the host: a byte stream, whatever carries it. Addresses as on the command line:

`vsock:CID:PORT` dials AF_VSOCK · `serial:NAME` opens the virtio-serial port of that name · `unix:PATH` dials a Unix
socket. All give one non-blocking descriptor for `os.readv`/`os.writev`.
"""

from __future__ import annotations

import errno
import os
import select
import socket

CONNECT_S = 5.0
MAX_PATH = 107  # sun_path without its terminating NUL
VIRTIO_PORTS = "/sys/class/virtio-ports"


class AddressError(ValueError):
    """the address is not of a known form"""


def check_address(address: str) -> None:
    """Raises AddressError for what can never be connected to."""
    _parsed(address)


def connect(address: str) -> int:
    """A connected descriptor, owned by the caller. Raises OSError when the host is not there (yet), within 5 s."""
    family, place = _parsed(address)
    return _open_port(str(place)) if family is None else _dial(family, place)


def _parsed(address: str) -> tuple[socket.AddressFamily | None, object]:
    """Socket family and address; no family for a port."""
    kind, _, rest = address.partition(":")
    if kind == "vsock":
        numbers = rest.split(":")
        if len(numbers) == 2 and all(n.isascii() and n.isdigit() and int(n) < 2**32 for n in numbers):
            return socket.AF_VSOCK, (int(numbers[0]), int(numbers[1]))
    elif kind == "unix" and 0 < len(os.fsencode(rest)) <= MAX_PATH:
        return socket.AF_UNIX, rest
    elif kind == "serial" and rest:
        return None, rest
    raise AddressError(f"{address!r} is not vsock:CID:PORT, serial:NAME or unix:PATH (of at most {MAX_PATH} bytes)")


def _dial(family: int, address: object) -> int:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(address)  # type: ignore[arg-type]  # typeshed has no tagged union of address families
        sock.setblocking(False)
        return sock.detach()
    except BaseException:
        sock.close()
        raise


def _open_port(name: str) -> int:
    """The port is a character device. While the host side is not connected, it reports a hang-up and reads end."""
    fd = os.open(_port_device(name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    events = poll.poll(0)
    if events and events[0][1] & select.POLLHUP:
        os.close(fd)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the host side of the port is not connected", name)
    return fd


def _port_device(name: str) -> str:
    try:
        ports = os.listdir(VIRTIO_PORTS)
    except FileNotFoundError:
        ports = []
    for port in ports:
        with open(f"{VIRTIO_PORTS}/{port}/name", encoding="utf-8") as file:
            if file.read().strip() == name:
                return f"/dev/{port}"
    raise FileNotFoundError(errno.ENOENT, "no virtio-serial port of that name", name)
