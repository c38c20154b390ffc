"""The bridge against hostile guests: raw bytes in on a Unix socket, and a real server that notes what comes out."""

from __future__ import annotations

import asyncio
import io
import json
import pathlib
import stat
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from vm0.runner import bridge as bridges
from vm0.runner import bridge_listener, bridge_policy
from vm0.runner.bridge import Bridge, BridgeError
from vm0.runner.bridge_policy import Denial, Route, judge
from vm0.sandbox import SourceAddress, UnixSocket

EXPECT = {"Expect": "100-continue"}
TOKEN = "vm0_sandbox_run-one"
EVENTS = "/api/webhooks/agent/events"
OBJECT = "/api/objects/local/artifact/x/archive.tar.gz?expires=1&max=0&signature=ab"


class Upstream:
    """Notes requests as they arrive; answers what the test says."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.aborted = 0
        self.answer: web.StreamResponse | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.arrived = 0
        self.changed = asyncio.Condition()
        self.url = ""

    async def __aenter__(self) -> Upstream:
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, auto_decompress=False), shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.hold.set()
        await self._runner.cleanup()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.arrived += 1
        await self._notify()
        try:
            body = b"".join([piece async for piece in request.content.iter_any()])
        except (aiohttp.ClientError, web.RequestPayloadError, ConnectionError):
            self.aborted += 1
            await self._notify()
            raise
        self.requests.append((request.method, request.raw_path, dict(request.headers), body))
        await self._notify()
        await self.hold.wait()
        return self.answer or web.Response(body=b'{"ok":true}', content_type="application/json")


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as found:
        yield found


@pytest_asyncio.fixture
async def bridge(upstream: Upstream) -> AsyncIterator[Bridge]:
    async with Bridge(upstream.url, stall_limit_s=1.0) as found:
        yield found


@pytest_asyncio.fixture
async def socket(bridge: Bridge, short_dir: pathlib.Path) -> str:
    path = str(short_dir / "guest" / "bridge.sock")
    await bridge.register("run-1", TOKEN, UnixSocket(path))
    return path


async def raw(path: str, data: bytes, *, limit_s: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, read one answer to the end of the connection; (status, headers, body)."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(limit_s):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            size = int(headers.get("content-length", "0"))
            return int(lines[0].split()[1]), headers, await reader.readexactly(size)
    finally:
        writer.close()


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: api.vm0.internal", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def test_a_webhook_gets_the_token_and_nothing_of_the_guests(upstream: Upstream, socket: str) -> None:
    claims = ("Authorization: Bearer forged", "Cookie: a=b", "X-Forwarded-For: 10.0.0.1", "Forwarded: for=x",
              "TE: trailers", "Connection: keep-alive, X-Secret", "X-Secret: 1", "Proxy-Authorization: x",
              "Upgrade: h2c", "X-Anything: y", "X-Http-Method-Override: DELETE", "Content-Type: application/json",
              "User-Agent: guest/1")  # fmt: skip
    status, _, body = await raw(socket, request("POST", EVENTS, b'{"runId":"other"}', *claims))
    assert (status, body) == (200, b'{"ok":true}')
    ((method, target, headers, sent),) = upstream.requests
    assert (method, target, sent) == ("POST", EVENTS, b'{"runId":"other"}')
    assert headers == {
        "Host": upstream.url.removeprefix("http://"),
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "User-Agent": "guest/1",
        "Content-Length": str(len(sent)),
    }


@pytest.mark.parametrize("route", sorted(bridge_policy.WEBHOOK_ROUTES))
async def test_every_route_of_a_run_is_forwarded(upstream: Upstream, socket: str, route: str) -> None:
    assert (await raw(socket, request("POST", route, b"{}")))[0] == 200
    assert upstream.requests[0][1] == route


async def test_objects_get_no_token_and_keep_their_signature(upstream: Upstream, socket: str) -> None:
    assert (await raw(socket, request("GET", OBJECT, b"", "Authorization: Bearer forged")))[0] == 200
    assert (await raw(socket, request("PUT", OBJECT, b"x" * 1000)))[0] == 200
    assert [(method, target) for method, target, _, _ in upstream.requests] == [("GET", OBJECT), ("PUT", OBJECT)]
    assert all("Authorization" not in headers for _, _, headers, _ in upstream.requests)
    assert upstream.requests[1][2]["Content-Length"] == "1000"


DENIED = [
    ("POST", "/api/webhooks/agent/complete", 403),
    ("POST", "/api/webhooks/agent/events/", 403),
    ("POST", "/api/webhooks/agent/events?runId=1", 400),
    ("POST", "/api/webhooks/agent/%65vents", 403),
    ("POST", "/api/webhooks/agent/../../runs", 403),
    ("POST", "/api/webhooks/agent/checkpoints/../complete", 403),
    ("POST", "/api//webhooks/agent/events", 404),
    ("POST", "//api/webhooks/agent/events", 404),
    ("POST", "/./api/webhooks/agent/events", 404),
    ("POST", "/api/webhooks\\agent\\events", 404),
    ("POST", "/API/webhooks/agent/events", 404),
    ("POST", "http://evil.example/api/webhooks/agent/events", 400),
    ("POST", "http://api.vm0.internal/api/webhooks/agent/events", 400),
    ("GET", EVENTS, 405),
    ("DELETE", EVENTS, 405),
    ("OPTIONS", "*", 400),
    ("GET", "/api/runs", 404),
    ("POST", "/api/runners/poll", 404),
    ("GET", "/", 404),
    ("GET", "/docs", 404),
    ("GET", "/api/objects/a", 403),
    ("GET", "/api/objects/a?signature=", 403),
    ("GET", "/api/objects/a?xsignature=1", 403),
    ("GET", "/api/objects/../runs?signature=1", 400),
    ("GET", "/api/objects/a/../../runs?signature=1", 400),
    ("GET", "/api/objects/a/%2e%2e/b?signature=1", 400),
    ("GET", "/api/objects/a%2fb?signature=1", 400),
    ("GET", "/api/objects/a//b?signature=1", 400),
    ("GET", "/api/objects//a?signature=1", 400),
    ("GET", "/api/objects/a/?signature=1", 400),
    ("GET", "/api/objects/.hidden?signature=1", 400),
    ("GET", "/api/objects/a?signature=1#x", 400),
    ("GET", "/api/objects/a?signature=1&x=" + "y" * 5000, 400),
    ("POST", "/api/objects/a?signature=1", 405),
    ("DELETE", "/api/objects/a?signature=1", 405),
    ("HEAD", "/api/objects/a?signature=1", 405),
]


@pytest.mark.parametrize(("method", "target", "status"), DENIED, ids=range(len(DENIED)))
async def test_what_a_run_may_not_say(upstream: Upstream, socket: str, method: str, target: str, status: int) -> None:
    found = judge(method, target)
    assert isinstance(found, Denial) and found.status == status
    answered, _, body = await raw(socket, request(method, target)) if method != "HEAD" else (status, {}, b"")
    assert answered == status
    if body:
        assert set(json.loads(body)["error"]) == {"code", "message"}
    assert upstream.requests == []


POST = b"POST " + EVENTS.encode() + b" HTTP/1.1\r\nHost: a\r\n"
SMUGGLING = [
    POST + b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: +2\r\n\r\n{}",
    POST + b"Content-Length : 2\r\n\r\n{}",
    POST + b"X: a\r\n b\nTransfer-Encoding: chunked\r\n\r\n{}",
    POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(500)) + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls hello \r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", SMUGGLING, ids=range(len(SMUGGLING)))
async def test_what_is_no_request_goes_no_further(upstream: Upstream, socket: str, data: bytes) -> None:
    try:
        status, _, body = await raw(socket, data, limit_s=5)
    except (asyncio.IncompleteReadError, ConnectionError):
        status, body = 400, b""  # closed without an answer is as good
    assert 400 <= status < 500
    assert not body or "error" in json.loads(body)
    assert upstream.requests == []


async def test_pipelined_requests_stay_apart(upstream: Upstream, socket: str) -> None:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(request("POST", EVENTS, b"one") + request("POST", EVENTS, b"two"))
    async with asyncio.timeout(5):
        for _ in range(2):
            await reader.readuntil(b'{"ok":true}')
    writer.close()
    assert [body for *_, body in upstream.requests] == [b"one", b"two"]


async def test_a_body_over_the_limit_is_refused(
    upstream: Upstream, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = await raw(socket, request("POST", EVENTS, b"", "Content-Length: 9000000"))
    assert announced[0] == 413
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    chunked = request("POST", EVENTS, b"", "Transfer-Encoding: chunked") + chunk * 130
    assert (await raw(socket, chunked))[0] == 413
    assert (await raw(socket, request("PUT", OBJECT, b"", f"Content-Length: {6 << 30}")))[0] == 413
    assert (await raw(socket, request("GET", OBJECT, b"x")))[0] == 413
    assert upstream.requests == []


async def test_a_large_object_is_streamed_both_ways(upstream: Upstream, socket: str) -> None:
    data = bytes(range(256)) * 4096 * 32  # 32 MiB
    upstream.answer = web.Response(body=data)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session:
        async with session.put(f"http://x{OBJECT}", data=io.BytesIO(data), headers=EXPECT) as answer:
            assert answer.status == 200 and await answer.read() == data
    assert upstream.requests[0][3] == data


async def test_a_large_post_is_forwarded_whole(upstream: Upstream, socket: str) -> None:
    data = b"e" * bridge_policy.MAX_JSON_BYTES
    assert (await raw(socket, request("POST", EVENTS, data)))[0] == 200
    assert upstream.requests[0][3] == data


async def test_encoded_bodies_pass_as_they_are(upstream: Upstream, socket: str) -> None:
    """Neither unpacked by us (a bomb would be our problem) nor repacked."""
    upstream.answer = web.Response(body=b"\x1f\x8bnot gzip", headers={"Content-Encoding": "gzip", "Set-Cookie": "a=b"})
    status, headers, body = await raw(
        socket, request("POST", EVENTS, b"\x1f\x8bnot gzip", "Content-Encoding: gzip", "Content-Type: x/y")
    )
    assert (status, body) == (200, b"\x1f\x8bnot gzip")
    assert headers["content-encoding"] == "gzip" and "set-cookie" not in headers
    assert upstream.requests[0][3] == b"\x1f\x8bnot gzip"


@pytest.mark.parametrize(
    "head", [b"", b"POST ", request("POST", EVENTS)[:-2], request("POST", EVENTS, b"", "Content-Length: 5") + b"{"]
)
async def test_a_slow_guest_is_cut_off(
    upstream: Upstream, short_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(bridge_listener, "HEADER_LIMIT_S", 0.3)
    async with Bridge(upstream.url, stall_limit_s=0.3) as bridge:
        path = str(short_dir / "slow.sock")
        await bridge.register("run-1", TOKEN, UnixSocket(path))
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head)
        async with asyncio.timeout(5):
            rest = await reader.read()
        writer.close()
    assert rest == b"" or b" 502 " in rest or b" 408 " in rest
    assert upstream.requests == []


async def test_connections_of_one_guest_are_bounded(
    upstream: Upstream, bridge: Bridge, socket: str, short_dir: pathlib.Path
) -> None:
    upstream.hold.clear()
    links = [await asyncio.open_unix_connection(socket) for _ in range(bridge_listener.MAX_CONNECTIONS)]
    for _, writer in links:
        writer.write(request("GET", OBJECT))
    await upstream.until(lambda: len(upstream.requests) == len(links))
    reader, writer = await asyncio.open_unix_connection(socket)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    # another guest is not affected
    other = str(short_dir / "other.sock")
    await bridge.register("run-2", "vm0_sandbox_run-two", UnixSocket(other))
    upstream.hold.set()
    assert (await raw(other, request("POST", EVENTS, b"{}")))[0] == 200
    assert upstream.requests[-1][2]["Authorization"] == "Bearer vm0_sandbox_run-two"
    for _, writer in links:
        writer.close()


async def test_whole_bodies_of_one_guest_are_bounded(upstream: Upstream, socket: str) -> None:
    """A guest that starts many large posts waits for itself; the bridge holds a few of them only."""
    upstream.hold.clear()
    count = bridge_listener.MAX_WHOLE_BODIES
    links = [await asyncio.open_unix_connection(socket) for _ in range(2 * count)]
    for _, writer in links:
        writer.write(request("POST", EVENTS, b"{}"))
    await upstream.until(lambda: len(upstream.requests) == count)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(upstream.requests) == count
    upstream.hold.set()
    for reader, writer in links:
        async with asyncio.timeout(10):
            assert b"200" in await reader.readuntil(b"\r\n")
        writer.close()


async def test_a_guest_that_goes_away_ends_its_request_upstream(upstream: Upstream, socket: str) -> None:
    _, writer = await asyncio.open_unix_connection(socket)
    writer.write(request("PUT", OBJECT, b"", "Content-Length: 1000000") + b"x" * 1000)
    await upstream.until(lambda: upstream.arrived)
    writer.transport.abort()
    await upstream.until(lambda: upstream.aborted)
    assert upstream.requests == []


async def test_a_server_that_is_down_is_a_502(short_dir: pathlib.Path) -> None:
    async with Bridge("http://127.0.0.1:1") as bridge:
        path = str(short_dir / "b.sock")
        await bridge.register("run-1", TOKEN, UnixSocket(path))
        status, _, body = await raw(path, request("POST", EVENTS, b"{}"))
        assert status == 502 and json.loads(body)["error"]["code"] == "UNAVAILABLE"
        assert (await raw(path, request("PUT", OBJECT, b"x" * 100_000)))[0] == 502


async def test_a_server_that_does_not_answer_is_a_502(upstream: Upstream, socket: str) -> None:
    upstream.hold.clear()
    assert (await raw(socket, request("POST", EVENTS, b"{}")))[0] == 502


async def test_redirects_are_not_followed(upstream: Upstream, socket: str) -> None:
    upstream.answer = web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
    assert (await raw(socket, request("POST", EVENTS, b"{}")))[0] == 502
    assert len(upstream.requests) == 1


async def test_an_answer_that_breaks_off_breaks_off(short_dir: pathlib.Path) -> None:
    """The guest must not take half an object for a whole one."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.transport.abort()

    async with await asyncio.start_server(half, "127.0.0.1", 0) as server:
        async with Bridge(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as bridge:
            path = str(short_dir / "b.sock")
            await bridge.register("run-1", TOKEN, UnixSocket(path))
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request("GET", OBJECT))
            async with asyncio.timeout(5):
                answer = await reader.read()
            writer.close()
    assert not answer.endswith(b"0\r\n\r\n")
    assert b" 502 " in answer or b"Transfer-Encoding: chunked" in answer


async def test_unregistering_ends_connections_and_removes_the_socket(bridge: Bridge, short_dir: pathlib.Path) -> None:
    path = short_dir / "deep" / "b.sock"
    handle = await bridge.register("run-1", TOKEN, UnixSocket(str(path)))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request("POST", EVENTS, b"{}"))
    assert await reader.readuntil(b'{"ok":true}')
    await bridge.unregister(handle)
    await bridge.unregister(handle)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    assert not path.exists()
    await bridge.register("run-2", TOKEN, UnixSocket(str(path)))


async def test_a_stale_socket_is_replaced_and_a_file_is_not(bridge: Bridge, short_dir: pathlib.Path) -> None:
    stale, file = short_dir / "stale.sock", short_dir / "file.sock"
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), str(stale))
    server.close()
    await bridge.register("run-1", TOKEN, UnixSocket(str(stale)))
    file.write_text("precious")
    with pytest.raises(BridgeError, match=r"file\.sock"):
        await bridge.register("run-2", TOKEN, UnixSocket(str(file)))
    assert file.read_text() == "precious"
    with pytest.raises(BridgeError):
        await bridge.register("run-3", TOKEN, UnixSocket("/" + "x" * 200))
    with pytest.raises(BridgeError, match="in use"):
        await bridge.register("run-4", TOKEN, UnixSocket(str(stale)))


async def free_port() -> int:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        return port


async def over_tcp(source: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        async with asyncio.timeout(5):
            writer.write(request("POST", EVENTS, b"{}", "Connection: close"))
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_guests_on_one_address_are_told_apart_by_their_source(upstream: Upstream, bridge: Bridge) -> None:
    port = await free_port()

    def access(source: str) -> SourceAddress:
        return SourceAddress("127.0.0.1", port, source, f"http://127.0.0.1:{port}")

    first = await bridge.register("run-1", "token-1", access("127.0.0.2"))
    second = await bridge.register("run-2", "token-2", access("127.0.0.3"))
    for source in ("127.0.0.2", "127.0.0.3"):
        assert b" 200 " in await over_tcp(source, port)
    assert [headers["Authorization"] for _, _, headers, _ in upstream.requests] == ["Bearer token-1", "Bearer token-2"]
    assert await over_tcp("127.0.0.4", port) == b""
    with pytest.raises(BridgeError, match="in use"):
        await bridge.register("run-3", "token-3", access("127.0.0.2"))
    await bridge.unregister(first)
    assert await over_tcp("127.0.0.2", port) == b""
    assert b" 200 " in await over_tcp("127.0.0.3", port)
    await bridge.unregister(second)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


def test_the_policy_allows_what_it_lists() -> None:
    route = judge("PUT", OBJECT)
    assert route == Route(
        target=OBJECT, add_token=False, max_body_bytes=bridge_policy.MAX_OBJECT_BYTES, whole_body=False
    )
    assert bridges.STALL_LIMIT_S > 0
