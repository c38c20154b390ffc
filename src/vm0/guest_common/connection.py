"""One connection to an HTTP origin over TCP, TLS or a Unix socket, on which no wait is without a limit."""

from __future__ import annotations

import http.client
import io
import re
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

CONNECT_TIMEOUT_S = 10.0
TRANSFER_IDLE_S = 60.0  # an upload or download that moves no byte for this long is dead
BLOCK_BYTES = 256 * 1024


class Address:
    """Where a request goes: an origin (one connection each) and a target on it."""

    __slots__ = ("host", "port", "prefix", "scheme", "socket_path")

    def __init__(self, scheme: str, host: str, port: int, prefix: str = "", socket_path: str = "") -> None:
        self.scheme, self.host, self.port = scheme, host, port
        self.prefix, self.socket_path = prefix, socket_path

    @property
    def origin(self) -> tuple[str, str, int, str]:
        return (self.scheme, self.host, self.port, self.socket_path)


def parse_address(url: str) -> Address:
    """Read a base or absolute address; `prefix` is its path and query. Raises ValueError."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError("a unix: address needs an absolute path")
        return Address("unix", "localhost", 0, socket_path=path)
    match = re.fullmatch(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[^/?#:@\s\[\]]+)(?::(\d{1,5}))?([/?][^#\s]*)?", url)
    if match is None:
        raise ValueError("the address must be http://, https:// or unix:")
    scheme, host, port, rest = match.groups()
    rest = rest or ""
    number = int(port) if port else (443 if scheme == "https" else 80)
    return Address(scheme, host.strip("[]"), number, f"/{rest}" if rest.startswith("?") else rest)


class DeadlineReader(io.RawIOBase):
    """Reads from a socket with a limit on each read and, if there is one, on all of them together."""

    def __init__(self, connection: Connection) -> None:
        sock = connection.sock
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int | None:
        self._sock.settimeout(self._connection.wait_s())
        return self._raw.readinto(buffer)  # type: ignore[arg-type]

    def close(self) -> None:
        self._raw.close()
        super().close()


class Connection(http.client.HTTPConnection):
    """One kept-open connection to an origin over TCP, TLS or a Unix socket."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None) -> None:
        super().__init__(address.host, address.port, timeout=CONNECT_TIMEOUT_S)
        self._address = address
        self._tls = tls
        self.deadline_s: float | None = None  # of the whole request, monotonic
        self.used = False
        self._gathered: list[bytes] | None = None

    def send_message(self, body: bytes) -> None:
        """End the headers and send them and the body as one piece: the other side wakes up once."""
        gathered: list[bytes] = []
        self._gathered = gathered
        try:
            self.endheaders(body)
        finally:
            self._gathered = None
        self.send(b"".join(gathered))

    def send(self, data: bytes) -> None:  # type: ignore[override]
        if self._gathered is not None:
            self._gathered.append(data)
        else:
            super().send(data)

    def wait_s(self) -> float:
        if self.deadline_s is None:
            return TRANSFER_IDLE_S
        return max(0.001, self.deadline_s - time.monotonic())

    def connect(self) -> None:
        if self._address.scheme == "unix":
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(CONNECT_TIMEOUT_S)
            self.sock.connect(self._address.socket_path)
            return
        self.sock = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def response_class(self, sock: socket.socket, *args: object, **options: object) -> http.client.HTTPResponse:  # type: ignore[override]
        response = http.client.HTTPResponse(sock, *args, **options)  # type: ignore[arg-type]
        response.fp.close()
        response.fp = io.BufferedReader(DeadlineReader(self), BLOCK_BYTES)
        return response
