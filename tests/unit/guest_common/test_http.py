from __future__ import annotations

import io
import json
import pathlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.fake_api import SIGNATURE, Answer, FakeApi, Received, error
from vm0.guest_common import connection as connections
from vm0.guest_common import http
from vm0.guest_common.connection import parse_address
from vm0.guest_common.http import ApiClient, ApiError, HttpError, LeaseLostError, TransportError, backoff_s

BEAT = "/api/webhooks/agent/heartbeat"
BODY = b'{"runId":"00000000-0000-0000-0000-000000000000"}'


@pytest.fixture(params=["tcp", "unix"])
def api(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[FakeApi]:
    with FakeApi(str(tmp_path / "api.sock") if request.param == "unix" else None) as api:
        yield api


@pytest.fixture
def client(api: FakeApi) -> Iterator[ApiClient]:
    client = ApiClient(api.url, delay_s=0.001)
    yield client
    client.close()


def first(count: int, answer: Answer) -> Callable[[Received], Answer | None]:
    left = [answer] * count
    return lambda request: left.pop() if left else None


def test_a_post_gives_the_body_back(api: FakeApi, client: ApiClient) -> None:
    assert json.loads(client.post_json(BEAT, BODY) or b"") == {"ok": True}
    assert api.received[0].content_type == "application/json"


def test_an_empty_answer_is_none(api: FakeApi, client: ApiClient) -> None:
    api.faults.append(first(1, Answer(204)))
    assert client.post_json(BEAT, BODY) is None


def test_a_thread_keeps_its_connection() -> None:
    connected: list[object] = []

    def accept() -> tuple[socket.socket, object]:
        connected.append(1)
        return fake._server.socket.accept()

    with FakeApi() as fake:
        fake._server.get_request = accept  # type: ignore[method-assign]
        client = ApiClient(fake.url)
        for _ in range(5):
            client.post_json(BEAT, BODY)
        thread = threading.Thread(target=client.post_json, args=(BEAT, BODY))
        thread.start()
        thread.join()
        client.close()
    assert len(connected) == 2


@pytest.mark.parametrize("status", [500, 502, 503, 408, 429, 0])
def test_a_passing_failure_is_retried(api: FakeApi, client: ApiClient, status: int) -> None:
    api.faults.append(first(2, Answer(status)))
    assert client.post_json(BEAT, BODY)
    assert len(api.received) >= 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 301])
def test_a_refusal_is_final(api: FakeApi, client: ApiClient, status: int) -> None:
    api.faults.append(lambda request: error(status, "SOME_CODE", "because"))
    with pytest.raises(HttpError, match=f"POST {BEAT}: HTTP {status} SOME_CODE because") as caught:
        client.post_json(BEAT, BODY)
    assert (caught.value.status, caught.value.code, caught.value.retriable) == (status, "SOME_CODE", False)
    assert len(api.received) == 1


def test_attempts_are_counted_in_total(api: FakeApi, client: ApiClient) -> None:
    api.faults.append(lambda request: Answer(500, b"<html>"))
    with pytest.raises(HttpError) as caught:
        client.post_json(BEAT, BODY, attempts=3)
    assert caught.value.retriable and caught.value.code == ""
    assert len(api.received) == 3


def test_a_pause_that_says_stop_ends_the_attempts(api: FakeApi) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return True

    client = ApiClient(api.url, pause=pause)
    api.faults.append(lambda request: Answer(500))
    with pytest.raises(HttpError):
        client.post_json(BEAT, BODY)
    client.close()
    assert len(pauses) == 1 and 0.75 <= pauses[0] <= 1.25


def test_pauses_grow() -> None:
    assert 0.75 <= backoff_s(1) <= 1.25
    assert 3.0 <= backoff_s(3) <= 5.0


def test_a_lost_lease_is_its_own_error_and_is_told_once(api: FakeApi) -> None:
    told: list[int] = []
    client = ApiClient(api.url, on_lease_lost=lambda: told.append(1))
    api.faults.append(lambda request: error(409, "LEASE_LOST"))
    with pytest.raises(LeaseLostError):
        client.post_json(BEAT, BODY)
    with pytest.raises(LeaseLostError):
        client.put_file(f"/api/objects/x?{SIGNATURE}", io.BytesIO(b"x"), 1, "text/plain")
    client.close()
    assert told == [1, 1]


def test_another_conflict_is_no_lost_lease(api: FakeApi, client: ApiClient) -> None:
    api.faults.append(lambda request: error(409, "CONFLICT", "LEASE_LOST"))
    with pytest.raises(HttpError) as caught:
        client.post_json(BEAT, BODY)
    assert not isinstance(caught.value, LeaseLostError)


def test_objects_go_up_and_down(api: FakeApi, client: ApiClient) -> None:
    data = bytes(range(256)) * 8192
    url = f"/api/objects/a/b?{SIGNATURE}"
    client.put_file(url, io.BytesIO(data + b"not announced"), len(data), "application/gzip")
    assert api.objects["a/b"] == data and api.received[0].content_type == "application/gzip"
    with client.get_stream(url) as download:
        assert download.size == len(data)
        received = b"".join(iter(lambda: download.read(100_000), b""))
    assert received == data


def test_an_absolute_address_goes_to_its_own_host(api: FakeApi) -> None:
    with FakeApi() as store:
        client = ApiClient(api.url)
        client.put_file(f"{store.url}/api/objects/k?{SIGNATURE}", io.BytesIO(b"data"), 4, "text/plain")
        with client.get_stream(f"{store.url}/api/objects/k?{SIGNATURE}") as download:
            assert download.read() == b"data"
        client.close()
        assert store.objects == {"k": b"data"} and api.received == []


def test_an_upload_starts_again_from_its_first_byte(api: FakeApi, client: ApiClient) -> None:
    api.faults.append(first(2, Answer(503)))
    client.put_file(f"/api/objects/k?{SIGNATURE}", io.BytesIO(b"x" * 300_000), 300_000, "text/plain")
    assert api.objects["k"] == b"x" * 300_000


def test_a_file_that_shrank_is_not_uploaded(api: FakeApi, client: ApiClient) -> None:
    with pytest.raises(TransportError, match="5 bytes shorter"):
        client.put_file(f"/api/objects/k?{SIGNATURE}", io.BytesIO(b"x" * 5), 10, "text/plain", attempts=1)
    assert api.objects == {}


@pytest.mark.parametrize("method", ["get", "put"])
@pytest.mark.parametrize("host", ["", "http://127.0.0.1:9"])
def test_no_error_repeats_a_signature(api: FakeApi, client: ApiClient, method: str, host: str) -> None:
    api.faults.append(lambda request: error(403, "FORBIDDEN", f"bad request {request.path}?{request.query}"))
    url = f"{host}/api/objects/k?{SIGNATURE}"
    with pytest.raises(ApiError) as caught:
        if method == "get":
            client.get_stream(url)
        else:
            client.put_file(url, io.BytesIO(b""), 0, "text/plain")
    assert "sEcReT" not in str(caught.value) and "/api/objects/k" in str(caught.value)
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)


@pytest.mark.parametrize("url", ["unix:/no/such.sock", "http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_nobody_there(url: str) -> None:
    client = ApiClient(url, delay_s=0.001)
    with pytest.raises(TransportError) as caught:
        client.post_json(BEAT, BODY, attempts=2)
    client.close()
    assert caught.value.kind == "connect" and caught.value.retriable


class RawServer:
    """Answers every connection with the given function; for peers that speak no proper HTTP."""

    def __init__(self, answer: Callable[[socket.socket], object]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with sock:
                try:
                    self._answer(sock)
                except OSError:
                    pass


def drip(sock: socket.socket) -> None:
    sock.recv(65536)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100:
        sock.send(bytes([byte]))
        time.sleep(0.05)


def test_a_dripping_answer_is_limited_as_a_whole() -> None:
    with RawServer(drip) as server:
        client = ApiClient(server.url)
        started = time.monotonic()
        with pytest.raises(TransportError, match="timeout"):
            client.post_json(BEAT, BODY, attempts=1, timeout_s=0.5)
        assert time.monotonic() - started < 2
        client.close()


def test_a_silent_server_is_a_timeout() -> None:
    with RawServer(lambda sock: (sock.recv(65536), sock.recv(1))) as server:
        client = ApiClient(server.url)
        with pytest.raises(TransportError, match="timeout"):
            client.post_json(BEAT, BODY, attempts=1, timeout_s=0.2)
        client.close()


def test_a_download_without_progress_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TRANSFER_IDLE_S", 0.2)

    def stall(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        sock.recv(1)

    with RawServer(stall) as server:
        client = ApiClient(server.url)
        with client.get_stream("/x") as download, pytest.raises(TransportError, match="timeout"):
            while download.read():
                pass
        client.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
    ],
)
def test_a_download_that_ends_early_is_an_error(answer: bytes) -> None:
    with RawServer(lambda sock: (sock.recv(65536), sock.send(answer))) as server:
        client = ApiClient(server.url)
        with client.get_stream("/x") as download, pytest.raises(TransportError):
            while download.read():
                pass
        client.close()


@pytest.mark.parametrize("garbage", [b"", b"\x00\xff\n\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200"])
def test_garbage_is_a_transport_error(garbage: bytes) -> None:
    with RawServer(lambda sock: (sock.recv(65536), sock.send(garbage))) as server:
        client = ApiClient(server.url, delay_s=0.001)
        with pytest.raises(TransportError):
            client.post_json(BEAT, BODY, attempts=2)
        client.close()
        assert server.connections == 2


def test_an_idle_connection_closed_by_the_server_is_no_failure() -> None:
    def once(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")  # kept alive, says the answer; then it closes

    with RawServer(once) as server:
        client = ApiClient(server.url)
        for _ in range(3):
            assert client.post_json(BEAT, BODY, attempts=1) == b"ok"
        client.close()


def test_a_refusal_during_the_upload_is_heard() -> None:
    def refuse(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.send(
            b'HTTP/1.1 413 No\r\nContent-Length: 53\r\n\r\n{"error":{"code":"PAYLOAD_TOO_LARGE","message":"too"}}'
        )
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass

    with RawServer(refuse) as server:
        client = ApiClient(server.url)
        with pytest.raises(HttpError) as caught:
            client.post_json(BEAT, b"x" * 20_000_000)
        assert caught.value.status == 413
        client.close()


def test_close_ends_a_request_in_progress() -> None:
    arrived = threading.Event()

    def hang(sock: socket.socket) -> None:
        sock.recv(65536)
        arrived.set()
        sock.recv(1)

    with RawServer(hang) as server:
        client = ApiClient(server.url, pause=lambda s: True)
        caught: list[BaseException] = []

        def post() -> None:
            try:
                client.post_json(BEAT, BODY)
            except ApiError as exc:
                caught.append(exc)

        thread = threading.Thread(target=post)
        thread.start()
        assert arrived.wait(5)
        client.close()
        thread.join(5)
        assert not thread.is_alive() and caught


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://api.vm0.internal", ("http", "api.vm0.internal", 80, "")),
        ("http://[::1]:8080/base?x=1", ("http", "::1", 8080, "/base?x=1")),
        ("https://h?x", ("https", "h", 443, "/?x")),
        ("unix:/run/a.sock", ("unix", "localhost", 0, "")),
    ],
)
def test_addresses(url: str, parts: tuple) -> None:
    address = parse_address(url)
    assert (address.scheme, address.host, address.port, address.prefix) == parts


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://user@host", "http://a b", "unix:relative", "http://x:y"]
)
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        ApiClient(url)


def test_a_base_address_may_have_a_path() -> None:
    with FakeApi() as api:
        client = ApiClient(f"{api.url}/proxy/")
        with pytest.raises(HttpError, match="/proxy/api/x"):
            client.post_json("/api/x", b"{}")
        client.close()


def test_tls_checks_the_certificate(tmp_path: pathlib.Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(65536)
            tls.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with RawServer(answer) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        stranger = ApiClient(url, delay_s=0.001)
        with pytest.raises(TransportError):
            stranger.post_json(BEAT, BODY, attempts=1)
        stranger.close()
        trusting = ApiClient(url)
        trusting._tls = ssl.create_default_context(cafile=str(certificate))
        assert trusting.post_json(BEAT, BODY, attempts=1) == b"ok"
        trusting.close()


def test_the_limits_are_those_of_the_contract() -> None:
    assert (connections.CONNECT_TIMEOUT_S, http.REQUEST_TIMEOUT_S, connections.TRANSFER_IDLE_S) == (10, 30, 60)
    assert (http.ATTEMPTS, http.RETRY_DELAY_S) == (3, 1)
