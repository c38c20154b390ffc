"""How the guest reaches the host: a byte stream, whatever carries it. Addresses as on the command line:

`vsock:CID:PORT` dials AF_VSOCK · `serial:NAME` is the virtio-serial port of that name · `unix:PATH` dials a Unix
socket. All give one non-blocking descriptor for `os.readv`/`os.writev`.

A socket is dialled anew for each connection. A port is opened once: only one process may have it open, and what tells
that the host's side is there is the port itself. It survives a snapshot: in a restored guest it is connected to another
host process without anybody in the guest noticing.
"""

from __future__ import annotations

import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm0.vsock_guest.loop import Loop

CONNECT_S = 5.0
MAX_PATH = 107  # sun_path without its terminating NUL
VIRTIO_PORTS = "/sys/class/virtio-ports"
DISCARD_SIZE = 64 * 1024


class AddressError(ValueError):
    """the address is not of a known form"""


def check_address(address: str) -> None:
    """Raises AddressError for what can never be connected to."""
    _parsed(address)


def is_port(address: str) -> bool:
    return address.startswith("serial:")


def connect(address: str) -> int:
    """A connected descriptor, owned by the caller. Raises OSError when the host is not there (yet), within 5 s."""
    import socket  # only here: it costs 30 ms of an emulated machine's start, and a port needs none

    kind, place = _parsed(address)
    sock = socket.socket(getattr(socket, kind), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(place)
        sock.setblocking(False)
        return sock.detach()
    except BaseException:
        sock.close()
        raise


def _parsed(address: str) -> tuple[str, tuple[int, int] | str]:
    """Name of the socket family, and the address in it."""
    kind, _, rest = address.partition(":")
    if kind == "vsock":
        numbers = rest.split(":")
        if len(numbers) == 2 and all(n.isascii() and n.isdigit() and int(n) < 2**32 for n in numbers):
            return "AF_VSOCK", (int(numbers[0]), int(numbers[1]))
    elif kind == "unix" and 0 < len(os.fsencode(rest)) <= MAX_PATH:
        return "AF_UNIX", rest
    elif kind == "serial" and rest:
        return "", rest
    raise AddressError(f"{address!r} is not vsock:CID:PORT, serial:NAME or unix:PATH (of at most {MAX_PATH} bytes)")


class Port:
    """A virtio-serial port, open for as long as the guest lives. Owns `fd`.

    While the host's side is not connected the port reports a hang-up and reads end; when it connects, whoever polls the
    port is woken. Being always ready for one of the two, it must be watched by its edges.

    One watch at a time: polling the port takes the next buffer from the device (virtio_console: `port_fops_poll`). If
    a watch that is not interested in it did so just before the device's interrupt, that would find no work and wake
    nobody, and who waits for the data would wait until the host sends more.
    """

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop, self._fd = loop, fd
        self._over = True  # the host has hung up since the last connection
        self._connected: Callable[[int], None] | None = None

    def when_connected(self, connected: Callable[[int], None]) -> None:
        """Call back with a descriptor for one connection, owned by the callee, when there is one that nobody had
        before; `released` must be told when it is closed. What the host still sends on an earlier one, which it cannot
        see the end of, is thrown away."""
        self._connected = connected
        self._loop.watch(self._fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET, self._look)

    def released(self, *, hung_up: bool) -> None:
        """Nobody watches or reads the connection any more; `hung_up`: because the host ended it."""
        self._over = hung_up
        self._loop.watch(self._fd, select.EPOLLET, self._look)  # hang-ups only, until somebody waits

    def _look(self, events: int) -> None:
        if events & select.EPOLLHUP:
            self._over = True
        elif self._connected is not None and not self._over:
            self._discard()
        elif self._connected is not None:
            connected, self._connected = self._connected, None
            self._over = False
            self._loop.unwatch(self._fd)
            connected(os.dup(self._fd))

    def _discard(self) -> None:
        try:
            while not self._over:
                self._over = not os.read(self._fd, DISCARD_SIZE)
        except OSError:
            pass  # nothing is there now


def open_port(address: str) -> int:
    """Raises FileNotFoundError when there is no port of that name (yet), OSError when somebody has it."""
    return os.open(_port_device(_parsed(address)[1]), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _port_device(name: object) -> str:
    try:
        ports = os.listdir(VIRTIO_PORTS)
    except FileNotFoundError:
        ports = []
    for port in ports:
        with open(f"{VIRTIO_PORTS}/{port}/name", encoding="utf-8") as file:
            if file.read().strip() == name:
                return f"/dev/{port}"
    raise FileNotFoundError(errno.ENOENT, "no virtio-serial port of that name", name)
