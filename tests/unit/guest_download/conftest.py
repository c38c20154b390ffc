"""An object store that answers as each test says, over a real socket."""

from __future__ import annotations

import gzip
import http.server
import pathlib
import socket
import socketserver
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

import pytest

from tests.unit.archive.tars import archive, member

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def ok(body: bytes) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def status(code: int) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def cut_short(body: bytes, keep: int) -> Answer:
    """Announces the whole body and closes in the middle."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:keep])
        request.close_connection = True

    return answer


def cut_chunked(body: bytes) -> Answer:
    """Chunks without the last one."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"%x\r\n%s\r\n" % (len(body) // 2, body[: len(body) // 2]))
        request.close_connection = True

    return answer


def trickle(body: bytes, stop: threading.Event) -> Answer:
    """A byte now and then, for ever."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        try:
            for byte in body:
                request.wfile.write(bytes([byte]))
                request.wfile.flush()
                if stop.wait(0.02):
                    return
        except OSError:
            return  # the client gave up, as it should

    return answer


def hang_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True


class Store:
    """Answers in order, the last one for ever; records what was asked, and how much of it at once."""

    def __init__(self) -> None:
        self.answers: dict[str, deque[Answer]] = defaultdict(deque)
        self.asked: list[str] = []
        self.spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self.running = self.peak = 0

    def put(self, path: str, *answers: Answer) -> str:
        self.answers[path].extend(answers)
        return f"{path}?X-Signature=top-secret"

    def count(self, path: str) -> int:
        return sum(asked.partition("?")[0] == path for asked in self.asked)

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        with self._lock:
            self.asked.append(request.path)
            self.running += 1
            self.peak = max(self.peak, self.running)
            queue = self.answers[path]
            answer = (queue.popleft() if len(queue) > 1 else queue[0]) if queue else status(404)
        started_s = time.monotonic()
        try:
            answer(request)
        finally:
            with self._lock:
                self.running -= 1
                self.spans[path].append((started_s, time.monotonic()))


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[Store]:
    store = Store()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            store.handle(self)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            return

    server = UnixServer(str(tmp_path / "bridge.sock"), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield store
    store.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api_url(store: Store, tmp_path: pathlib.Path) -> str:
    return f"unix:{tmp_path / 'bridge.sock'}"


def tar_of(**files: bytes) -> bytes:
    return archive(*(member(f"./{name}", data) for name, data in files.items()))


def noise(size: int) -> bytes:
    """An archive of roughly `size` bytes that does not compress."""
    import random

    return gzip.compress(member("./noise", random.Random(1).randbytes(size)) + bytes(1024))
