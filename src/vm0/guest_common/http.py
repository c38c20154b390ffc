"""The API as the guest sees it: JSON posts, streamed downloads and uploads, with retries and typed errors.

The base address is `http://host[:port]`, `https://…` (system trust store) or `unix:/path/to/socket`. No token is ever
sent: the bridge outside adds it. Addresses of objects may carry a signature in their query, so no error text contains a
query.

Each thread has a connection of its own, kept open between requests. Every wait is bounded: connecting, a whole JSON
request, and the time without progress of a transfer.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import ssl
import threading
import time

from vm0.guest_common.connection import BLOCK_BYTES, TRANSFER_IDLE_S, Address, Connection, parse_address
from vm0.guest_common.log import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import BinaryIO, Protocol, TypeVar

    T = TypeVar("T")

    class Readable(Protocol):
        def read(self, size: int, /) -> bytes: ...
        def seek(self, offset: int, /) -> int: ...


REQUEST_TIMEOUT_S = 30.0
ATTEMPTS = 3
RETRY_DELAY_S = 1.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
LEASE_LOST = "LEASE_LOST"
RETRIABLE_STATUS = frozenset({408, 429})


class ApiError(Exception):
    """a request to the API failed"""

    retriable = True


class TransportError(ApiError):
    """no answer: `kind` is `connect`, `timeout` or `transport`"""

    def __init__(self, what: str, kind: str, detail: str) -> None:
        super().__init__(f"{what}: {kind} error: {detail}")
        self.kind = kind


class HttpError(ApiError):
    """an answer that is not 2xx; `code` is the API's own, empty if the answer had none"""

    def __init__(self, what: str, status: int, code: str, message: str) -> None:
        parts = [f"{what}: HTTP {status}", code, message]
        super().__init__(" ".join(part for part in parts if part))
        self.status, self.code, self.message = status, code, message
        self.retriable = status >= 500 or status in RETRIABLE_STATUS


class LeaseLostError(HttpError):
    """the run belongs to somebody else by now: stop at once and write nothing more"""


def backoff_s(failures: int, base_s: float = RETRY_DELAY_S) -> float:
    """The pause after the n-th failure (from 1): doubling, within a quarter around the mean."""
    return float(base_s * 2 ** (failures - 1) * random.uniform(0.75, 1.25))


class Download:
    """The body of an answer, read piece by piece; a context manager that owns its connection."""

    def __init__(
        self,
        what: str,
        response: http.client.HTTPResponse,
        connection: Connection,
        drop: Callable[[Connection], None],
    ) -> None:
        self._what = what
        self._connection = connection
        self._drop = drop
        self._response = response
        length = response.headers.get("Content-Length", "")
        self.size: int | None = int(length) if length.isdigit() else None
        self._received = 0

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """Up to `size` bytes, empty at the end. Raises TransportError, also when the end came too early.

        Gives what has arrived instead of waiting until `size` is there: between two reads the caller can stop a body
        that trickles in.
        """
        try:
            if size < 0:
                data = self._response.read()
            elif self._received == self.size and not self._response.chunked:
                data = b""  # read1 of Python 3.11 does not know where the body ends
            else:
                data = self._response.read1(max(1, size))
        except (OSError, http.client.HTTPException) as exc:
            raise _transport_error(self._what, exc) from None
        self._received += len(data)
        if not data and self.size is not None and self._received < self.size:
            raise TransportError(self._what, "transport", f"ended after {self._received} of {self.size} bytes")
        return data

    def close(self) -> None:
        self._response.close()
        self._drop(self._connection)

    def __enter__(self) -> Download:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ApiClient:
    """Requests to the API and to the object addresses it gives out. Thread-safe.

    `pause(seconds)` waits between attempts; if it returns true the attempts end there (`threading.Event.wait` of a
    stop event does both). `on_lease_lost` is called once per LEASE_LOST answer, before the error is raised.
    Raises ValueError if the base address is malformed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        delay_s: float = RETRY_DELAY_S,
        pause: Callable[[float], object] = time.sleep,
        on_lease_lost: Callable[[], None] | None = None,
    ) -> None:
        self._base = parse_address(base_url.rstrip("/"))
        self._delay_s = delay_s
        self._pause = pause
        self._on_lease_lost = on_lease_lost
        self._tls: ssl.SSLContext | None = None
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[Connection] = set()

    def post_json(
        self, path: str, body: bytes, *, attempts: int = ATTEMPTS, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> bytes | None:
        """POST a JSON body; the answer's body, or None if it is empty. Raises ApiError after the last attempt."""
        return self.attempt(lambda: self._post_once(path, body, timeout_s), attempts)

    def get_stream(self, url: str) -> Download:
        """GET an object; the caller reads and closes it. One attempt: only the caller can repeat its own work."""
        what, connection, target = self._prepare("GET", url, kept=False)
        try:
            connection.putrequest("GET", target, skip_accept_encoding=True)
            connection.endheaders()
            response = self._answer(what, target, connection)
        except BaseException as exc:
            self._drop(connection)
            if isinstance(exc, (OSError, http.client.HTTPException)):
                raise _transport_error(what, exc) from None
            raise
        return Download(what, response, connection, self._drop)

    def put_file(
        self, url: str, fileobj: Readable | BinaryIO, size: int, content_type: str, *, attempts: int = ATTEMPTS
    ) -> None:
        """PUT the first `size` bytes of a file, from its start at every attempt. Raises ApiError."""
        self.attempt(lambda: self._put_once(url, fileobj, size, content_type), attempts)

    def attempt(self, operation: Callable[[], T], attempts: int = ATTEMPTS) -> T:
        """Call `operation` until it works, at most `attempts` times; an ApiError that is not retriable ends it."""
        failures = 0
        while True:
            try:
                return operation()
            except LeaseLostError:
                if self._on_lease_lost is not None:
                    self._on_lease_lost()
                raise
            except ApiError as exc:
                failures += 1
                if not exc.retriable or failures >= attempts or self._pause(backoff_s(failures, self._delay_s)):
                    raise

    def close(self) -> None:
        """Close every connection; a request in progress in another thread fails at once. Idempotent."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            sock = connection.sock
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected (any more): nothing waits on it
            connection.close()

    def _post_once(self, path: str, body: bytes, timeout_s: float) -> bytes | None:
        deadline_s = time.monotonic() + timeout_s
        for fresh in (False, True):
            what, connection, target = self._prepare("POST", path, kept=True)
            reused, connection.used = connection.used, True
            try:
                connection.deadline_s = deadline_s
                if connection.sock is None:
                    connection.connect()
                return self._send_and_read(what, target, connection, body)
            except (OSError, http.client.HTTPException) as exc:
                self._drop(connection)
                # The other side may close an idle connection at any time; that is no failure of the request.
                if fresh or not reused or not isinstance(exc, (ConnectionError, http.client.RemoteDisconnected)):
                    raise _transport_error(what, exc) from None
            except BaseException:
                self._drop(connection)
                raise
        raise AssertionError("unreachable")

    def _send_and_read(self, what: str, target: str, connection: Connection, body: bytes) -> bytes | None:
        connection.sock.settimeout(connection.wait_s())
        connection.putrequest("POST", target, skip_accept_encoding=True)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        try:
            connection.send_message(body)
        except ConnectionError:
            pass  # the other side may have refused the body and said why
        response = self._answer(what, target, connection)
        if response.length is None and not response.chunked:
            raise TransportError(what, "transport", "the answer has no length, so it may be cut off")
        answer = response.read(MAX_ANSWER_BYTES + 1)
        if len(answer) > MAX_ANSWER_BYTES:
            raise TransportError(what, "transport", f"the answer exceeds {MAX_ANSWER_BYTES} bytes")
        if response.will_close:
            self._drop(connection)
        return answer or None

    def _put_once(self, url: str, fileobj: Readable | BinaryIO, size: int, content_type: str) -> None:
        what, connection, target = self._prepare("PUT", url, kept=False)
        fileobj.seek(0)
        try:
            connection.putrequest("PUT", target, skip_accept_encoding=True)
            connection.putheader("Content-Type", content_type)
            connection.putheader("Content-Length", str(size))
            connection.endheaders()
            connection.sock.settimeout(TRANSFER_IDLE_S)
            try:
                _send_file(what, connection, fileobj, size)
            except ConnectionError:
                pass  # as above
            self._answer(what, target, connection).read(MAX_ERROR_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise _transport_error(what, exc) from None
        finally:
            self._drop(connection)

    def _prepare(self, method: str, url: str, *, kept: bool) -> tuple[str, Connection, str]:
        """What to call the request in errors, a connection for it, and its request target."""
        if url.startswith("/"):
            address, target = self._base, self._base.prefix + url
        else:
            address = parse_address(url)
            target = address.prefix or "/"
        where = target.partition("?")[0]
        what = f"{method} {where}" if address is self._base else f"{method} {address.scheme}://{address.host}{where}"
        if not kept:
            return what, self._connection(address), target
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connection(address)
        return what, connection, target

    def _connection(self, address: Address) -> Connection:
        if address.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        connection = Connection(address, self._tls if address.scheme == "https" else None)
        with self._lock:
            self._open.add(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            self._open.discard(connection)
        if getattr(self._local, "connection", None) is connection:
            self._local.connection = None

    def _answer(self, what: str, target: str, connection: Connection) -> http.client.HTTPResponse:
        """The answer if it is 2xx; raises HttpError otherwise, after which the connection is not used again."""
        response = connection.getresponse()
        if 200 <= response.status < 300:
            return response
        code, message = _error_body(response.read(MAX_ERROR_BYTES))
        query = target.partition("?")[2]
        message = message.replace(query, "…") if query else message
        kind = LeaseLostError if code == LEASE_LOST else HttpError
        raise kind(what, response.status, code, message or response.reason)


def _send_file(what: str, connection: Connection, fileobj: Readable | BinaryIO, size: int) -> None:
    left = size
    while left:
        block = fileobj.read(min(BLOCK_BYTES, left))
        if not block:
            raise TransportError(what, "transport", f"the file is {left} bytes shorter than announced")
        connection.send(block)
        left -= len(block)


def _error_body(body: bytes) -> tuple[str, str]:
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "", ""
    if not isinstance(code, str) or not re.fullmatch(r"[A-Z0-9_]{1,64}", code):
        code = ""
    return code, one_line(message)[:2000] if isinstance(message, str) else ""


def _transport_error(what: str, error: Exception) -> TransportError:
    if isinstance(error, TimeoutError):
        return TransportError(what, "timeout", "no answer in time")
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError, socket.gaierror)):
        return TransportError(what, "connect", error.strerror or type(error).__name__)
    if isinstance(error, http.client.RemoteDisconnected):
        return TransportError(what, "transport", "closed without an answer")
    if isinstance(error, http.client.HTTPException):
        return TransportError(what, "transport", type(error).__name__)
    return TransportError(what, "transport", getattr(error, "strerror", None) or type(error).__name__)
