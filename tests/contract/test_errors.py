"""Bad input and broken requests: always the error shape, always 4xx with the field's path, never 5xx."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.engine import Connection

from tests.contract.plane import Plane, running_plane

pytestmark = pytest.mark.asyncio(loop_scope="module")
RUN: dict[str, Any] = {"prompt": "x", "cliAgentType": "command"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    """One server for all of these: what is refused changes nothing."""
    async with running_plane(tmp_path_factory.mktemp("errors") / "state") as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "x" * (10 * 1024 * 1024)}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"cliAgentType": "gpt"}, "cliAgentType"),
        ({"timeoutSeconds": 0}, "timeoutSeconds"),
        ({"timeoutSeconds": 1e999}, "timeoutSeconds"),
        ({"timeoutSeconds": True}, "timeoutSeconds"),
        ({"maxAttempts": 11}, "maxAttempts"),
        ({"group": "nogroup"}, "group"),
        ({"workingDir": "relative"}, "workingDir"),
        ({"workingDir": "/a/../b"}, "workingDir"),
        ({"environment": {"1A": "b"}}, "environment.1A"),
        ({"environment": {"VM0_X": "b"}}, "environment.VM0_X"),
        ({"environment": {"A": None}}, "environment.A"),
        ({"environment": []}, "environment"),
        ({"environment": {"A": "1"}, "secrets": {"A": "2"}}, "secrets.A"),
        ({"storages": [{"name": "a"}]}, "storages[0].mountPath"),
        ({"storages": [{"name": "../a", "mountPath": "/a"}]}, "storages[0].name"),
        ({"artifact": {"name": "a", "mountPath": "/a", "versionId": "head"}}, "artifact.versionId"),
        ({"isolation": "none"}, "isolation"),
        ({"resumeRunId": "last"}, "resumeRunId"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_bad_field_is_named(plane: Plane, fields: dict[str, Any], path: str) -> None:
    message = await plane.error("POST", "/api/runs", plane.user, {**RUN, **fields}, want="BAD_REQUEST")
    assert message.startswith(f"{path}:"), message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"12",
        b"\xff\xfe\xfd",
        b'{"prompt": "\xff"}',
        b'{"prompt": "x"} trailing',
        b'{"prompt": "x", "timeoutSeconds": NaN}',
        b"[" * 100_000,
        b'{"prompt":' * 50_000,
        b'{"timeoutSeconds": ' + b"9" * 5000 + b"}",
        '{"prompt": "x"}'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:20]),
)
async def test_a_body_that_is_not_the_json_we_want(plane: Plane, data: bytes) -> None:
    await plane.call("POST", "/api/runs", plane.user, data=data, want="BAD_REQUEST")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/runs?limit=0", "limit"),
        ("/api/runs?limit=201", "limit"),
        ("/api/runs?limit=many", "limit"),
        ("/api/runs?limit=1.5", "limit"),
        ("/api/runs?limit=", "limit"),
        ("/api/runs?cursor=-1", "cursor"),
        ("/api/runs?cursor=99999999999999999999", "cursor"),
        ("/api/runs?status=done", "status"),
        ("/api/runs/{run}/events?after=-2", "after"),
        ("/api/runs/{run}/events?after=%D9%A3", "after"),
        ("/api/runs/{run}/events?limit=1001", "limit"),
        ("/api/runs/{run}/events?wait=31", "wait"),
        ("/api/runs/{run}/events?wait=nan", "wait"),
        ("/api/runs/{run}/events?wait=1e400", "wait"),
    ],
)
async def test_a_bad_query_parameter_is_named(plane: Plane, path: str, name: str) -> None:
    path = path.replace("{run}", await plane.submit())
    message = await plane.error("GET", path, plane.user, want="BAD_REQUEST")
    assert message.startswith(f"{name}:"), message


@pytest.mark.parametrize(
    ("method", "path", "want"),
    [
        ("GET", "/", "NOT_FOUND"),
        ("GET", "/api", "NOT_FOUND"),
        ("GET", "/api/runs/", "NOT_FOUND"),
        ("POST", "/api/nothing", "NOT_FOUND"),
        ("GET", "/%ff%fe", "NOT_FOUND"),
        ("DELETE", "/api/runs", "METHOD_NOT_ALLOWED"),
        ("PUT", "/healthz", "METHOD_NOT_ALLOWED"),
        ("GET", "/api/webhooks/agent/events", "METHOD_NOT_ALLOWED"),
        ("BREW", "/healthz", "METHOD_NOT_ALLOWED"),
        ("GET", "/api/runs/not-a-uuid", "NOT_FOUND"),
        ("GET", "/api/runs/00000000-0000-0000-0000-000000000000/logs", "NOT_FOUND"),
    ],
)
async def test_addresses_and_methods_nobody_declared(plane: Plane, method: str, path: str, want: str) -> None:
    await plane.call(method, path, plane.user, want=want)


async def test_a_body_above_the_limit_is_413_and_the_connection_stays_usable(plane: Plane) -> None:
    body = {"group": "vm0/default", "padding": "x" * (3 * 1024 * 1024)}
    await plane.call("POST", "/api/runners/poll", plane.runner_token, body, want="PAYLOAD_TOO_LARGE")
    await plane.call("POST", "/api/runners/poll", plane.runner_token, {"group": "vm0/default"})


async def test_a_chunked_body_above_the_limit_is_413(plane: Plane) -> None:
    async def pieces() -> Any:
        for _ in range(5):
            yield b" " * 1024 * 1024

    headers = {"authorization": f"Bearer {plane.runner_token}"}
    async with plane.http.post("/api/runners/poll", data=pieces(), headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "PAYLOAD_TOO_LARGE"


async def test_an_early_refusal_of_a_large_body_arrives(plane: Plane) -> None:
    body = {**RUN, "padding": "x" * (8 * 1024 * 1024)}
    await plane.call("POST", "/api/runs", None, body, want="UNAUTHORIZED")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"POST /api/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    ],
    ids=lambda data: repr(data[:30]),
)
async def test_what_is_not_http_gets_the_error_shape_too(plane: Plane, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_connection(plane.handle.host, plane.handle.port)
    try:
        writer.write(request_bytes)
        async with asyncio.timeout(20):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400"), answer[:200]
    assert json.loads(body)["error"]["code"] == "BAD_REQUEST"
    await plane.call("GET", "/healthz")


async def test_a_body_that_breaks_off_leaves_the_server_well(plane: Plane) -> None:
    before = await plane.call("GET", "/api/runs", plane.user)
    head = f"POST /api/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.user}\r\nContent-Length: 1000\r\n\r\n"
    _, writer = await asyncio.open_connection(plane.handle.host, plane.handle.port)
    writer.write(head.encode() + b'{"prompt": ')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await plane.call("GET", "/healthz")
    assert await plane.call("GET", "/api/runs", plane.user) == before


async def test_our_own_bug_is_500_logged_with_its_traceback_and_told_without_details(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(connection: Connection, *args: object) -> None:
        raise ValueError("an internal detail")

    run_id = await plane.submit()
    monkeypatch.setattr("vm0.server.queue.owned", broken)
    with caplog.at_level(logging.ERROR, "vm0.server.http"):
        answer = await plane.call("GET", f"/api/runs/{run_id}", plane.user, want="INTERNAL_ERROR")
    assert "detail" not in answer["error"]["message"].replace("the details", "")
    assert "an internal detail" in caplog.text and "Traceback" in caplog.text


async def test_the_openapi_page_describes_every_route_by_its_contract(plane: Plane) -> None:
    page = await plane.call("GET", "/openapi.json")
    submit = page["paths"]["/api/runs"]["post"]
    assert submit["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/RunRequest"}
    assert submit["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/RunView")
    assert submit["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert page["components"]["schemas"]["RunRequest"]["properties"]["prompt"]["maxLength"] == 1024 * 1024
    events = page["paths"]["/api/runs/{runId}/events"]["get"]["parameters"]
    assert [parameter["name"] for parameter in events] == ["runId", "after", "limit", "wait"]
    references = {word.split('"')[0] for word in json.dumps(page).split("#/components/schemas/")[1:]}
    assert references <= page["components"]["schemas"].keys()
    async with plane.http.get("/docs") as response:
        text = await response.text()
        assert response.status == 200 and response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path in page["paths"]:
        assert f"<code>{path}</code>" in text
    assert set(re.findall(r'href="#(\w+)"', text)) <= set(re.findall(r'id="(\w+)"', text))
    assert "http://" not in text and "https://" not in text and "<script" not in text
