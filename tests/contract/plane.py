"""A real server over real HTTP, and the few calls that tests make all the time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from vm0.contracts.errors import STATUS
from vm0.server.clock import SystemClock
from vm0.server.config import ServerConfig
from vm0.server.service import ServerHandle, running_server
from vm0.server.tokens import create_token

STATUSES = {code.value: status for code, status in STATUS.items()}


class TurnedClock(SystemClock):
    """The real time, plus what a test turned it forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def advance(self, seconds: float) -> None:
        self.ahead_ms += int(seconds * 1000)

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def monotonic_ms(self) -> int:
        return super().monotonic_ms() + self.ahead_ms


@dataclasses.dataclass(frozen=True)
class Runner:
    """Who claims."""

    runner_id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    boot_id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))

    def body(self, **more: Any) -> dict[str, Any]:
        return {"runnerId": self.runner_id, "bootId": self.boot_id, **more}


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A run and one of its leases."""

    run_id: str
    runner: Runner
    token: str
    epoch: int
    context: dict[str, Any]


@dataclasses.dataclass
class Plane:
    handle: ServerHandle
    http: aiohttp.ClientSession
    clock: TurnedClock
    user: str
    other: str
    runner_token: str

    async def call(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: Any = None,
        *,
        want: int | str = 200,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The JSON answer. `want`: the status, or the error code; the error shape is always checked."""
        sent = dict(headers or {})
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        if body is not None:
            data = json.dumps(body).encode()
        async with self.http.request(method, path, data=io.BytesIO(data) if data else None, headers=sent) as response:
            text = await response.read()
            wanted = STATUSES[want] if isinstance(want, str) else want
            assert response.status == wanted, f"{method} {path}: {response.status} {text[:2000]!r}"
            answer = json.loads(text)
        if response.status >= 400:
            assert answer.keys() == {"error"} and answer["error"].keys() == {"code", "message"}, answer
            assert STATUSES[answer["error"]["code"]] == response.status, answer
            assert isinstance(want, int) or answer["error"]["code"] == want, answer
        return answer

    async def error(self, method: str, path: str, token: str | None = None, body: Any = None, *, want: str) -> str:
        answer = await self.call(method, path, token, body, want=want)
        return str(answer["error"]["message"])

    async def submit(self, token: str | None = None, **fields: Any) -> str:
        body = {"prompt": "true", "cliAgentType": "command", **fields}
        return str((await self.call("POST", "/api/runs", token or self.user, body, want=201))["runId"])

    async def view(self, run_id: str) -> Any:
        return await self.call("GET", f"/api/runs/{run_id}", self.user)

    async def claim(self, run_id: str, runner: Runner | None = None) -> Claimed:
        runner = runner or Runner()
        path = f"/api/runners/jobs/{run_id}/claim"
        context = await self.call("POST", path, self.runner_token, runner.body())
        return Claimed(run_id, runner, context["sandboxToken"], context["lease"]["epoch"], context)

    async def submit_and_claim(self, **fields: Any) -> Claimed:
        return await self.claim(await self.submit(**fields))

    async def renew(self, lease: Claimed, *, want: int | str = 200, **more: Any) -> Any:
        path = f"/api/runners/jobs/{lease.run_id}/lease"
        body = lease.runner.body(epoch=lease.epoch, **more)
        return await self.call("POST", path, self.runner_token, body, want=want)

    async def webhook(self, lease: Claimed, name: str, *, want: int | str = 200, **fields: Any) -> Any:
        body = {"runId": lease.run_id, **fields}
        return await self.call("POST", f"/api/webhooks/agent/{name}", lease.token, body, want=want)

    async def events(self, lease: Claimed, *numbers: int, want: int | str = 200) -> Any:
        batch = [{"type": "line", "sequenceNumber": number} for number in numbers]
        return await self.webhook(lease, "events", events=batch, want=want)

    async def complete(self, lease: Claimed, **fields: Any) -> Any:
        return await self.webhook(lease, "complete", **(fields or {"exitCode": 0}))

    async def finish(self, lease: Claimed) -> None:
        """The usual end: a checkpoint and exit code 0."""
        await self.webhook(lease, "checkpoints", cliAgentType="command")
        assert (await self.complete(lease))["status"] == "completed"

    async def upload(self, kind: str, name: str, files: dict[str, bytes], token: str | None = None) -> str:
        """Store a version by the user's routes and return its id."""
        entries = file_entries(files)
        body: dict[str, Any] = {"storageName": name, "storageType": kind, "files": entries}
        prepared = await self.call("POST", "/api/storages/prepare", token or self.user, body)
        for upload in (prepared.get("uploads") or {}).values():
            await self.put(upload["presignedUrl"], b"\n".join(files.values()))
        body["versionId"] = prepared["versionId"]
        await self.call("POST", "/api/storages/commit", token or self.user, body)
        return str(prepared["versionId"])

    async def waited_for(self, topic: str) -> None:
        """Returns when a long poll waits for the topic."""
        for _ in range(2000):
            if self.handle.context.notifier.has_waiters(topic):
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"nobody waits for {topic}")

    async def put(self, url: str, data: bytes, *, want: int | str = 200) -> Any:
        return await self.call("PUT", url, data=data, want=want)

    async def get(self, url: str) -> bytes:
        async with self.http.get(url) as response:
            assert response.status == 200, await response.text()
            return await response.read()


def file_entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"path": path, "hash": hashlib.sha256(data).hexdigest(), "size": len(data)} for path, data in files.items()]


@contextlib.asynccontextmanager
async def running_plane(state_dir: pathlib.Path, **settings: Any) -> AsyncIterator[Plane]:
    """A server with its own clock and three tokens: two users and a runner."""
    clock = TurnedClock()
    config = ServerConfig(state_dir=state_dir, **settings)
    async with running_server(config, clock=clock) as handle, aiohttp.ClientSession(handle.url) as http:
        alice, bob = (create_token(state_dir, "user", name) for name in ("alice", "bob"))
        yield Plane(handle, http, clock, alice, bob, create_token(state_dir, "runner"))
