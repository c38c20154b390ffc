"""The real command as a subprocess, a real server in this process, and a runner that does what a test says."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import aiohttp
import pytest

from vm0.cli.api import ApiClient
from vm0.contracts.codec import dumps, loads
from vm0.contracts.runner import ClaimRequest, ExecutionContext, LeaseAnswer, LeaseRequest, PollAnswer, PollRequest
from vm0.contracts.runs import Isolation, Outcome, OutcomeKind, TimelineStep
from vm0.contracts.webhooks import CheckpointRequest, CompleteRequest, EventsRequest
from vm0.server.config import ServerConfig
from vm0.server.service import ServerHandle, running_server
from vm0.server.tokens import create_token

COMMAND = (sys.executable, "-m", "vm0.cli")
TIME_LIMIT_S = 50
EXITED = Outcome(kind=OutcomeKind.EXITED, exit_code=0)


@dataclasses.dataclass(frozen=True)
class Cli:
    """Calls `vm0` with an environment of its own."""

    home: pathlib.Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH")}
        return {**kept, "HOME": str(self.home), "VM0_HOME": str(self.home / "state"), **variables}

    def __call__(
        self, *arguments: str, stdin: bytes = b"", cwd: pathlib.Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            timeout=TIME_LIMIT_S,
            env=self.environment(**variables),
            cwd=cwd,
        )

    async def start(self, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(**variables),
        )

    async def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Without blocking the loop that the server runs in."""
        process = await self.start(*arguments, **variables)
        return await ended(process)


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    return process.returncode or 0, stdout.decode(), stderr.decode()


@pytest.fixture
def cli(tmp_path: pathlib.Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    return Cli(home)


@dataclasses.dataclass(frozen=True)
class Served:
    """A real server and the tokens for it."""

    handle: ServerHandle
    user_token: str
    runner_token: str

    @property
    def url(self) -> str:
        return self.handle.url

    @property
    def variables(self) -> dict[str, str]:
        return {"VM0_SERVER_URL": self.url, "VM0_TOKEN": self.user_token}


@pytest.fixture
async def served(tmp_path: pathlib.Path) -> AsyncIterator[Served]:
    state_dir = tmp_path / "server"
    config = ServerConfig(state_dir=state_dir, shutdown_grace_s=1.0)
    async with running_server(config) as handle:
        yield Served(handle, create_token(state_dir, "user"), create_token(state_dir, "runner"))


@pytest.fixture
async def client(served: Served) -> AsyncIterator[ApiClient]:
    async with ApiClient(served.url, served.user_token) as found:
        yield found


class ScriptedRunner:
    """Claims one run of the default group over HTTP and reports what the test wants."""

    def __init__(self, served: Served, group: str = "vm0/default") -> None:
        self._served, self._group = served, group
        self._runner_id, self._boot_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.context: ExecutionContext | None = None

    async def claim(self) -> ExecutionContext:
        poll = PollRequest(group=self._group, wait_seconds=20)
        job = loads(PollAnswer, await self._post("/api/runners/poll", poll)).job
        assert job is not None, "no run was queued"
        claim = ClaimRequest(runner_id=self._runner_id, boot_id=self._boot_id, runner_name="scripted")
        text = await self._post(f"/api/runners/jobs/{job.run_id}/claim", claim)
        self.context = loads(ExecutionContext, text)
        return self.context

    async def lease(self, *steps: TimelineStep, agent_started: bool = True) -> LeaseAnswer:
        context = self._claimed
        lease = LeaseRequest(
            runner_id=self._runner_id,
            boot_id=self._boot_id,
            epoch=context.lease.epoch,
            agent_started=agent_started,
            timeline=tuple(steps),
        )
        return loads(LeaseAnswer, await self._post(f"/api/runners/jobs/{context.run_id}/lease", lease))

    async def events(self, *events: Mapping[str, Any], first: int = 0) -> None:
        context = self._claimed
        numbered = tuple({**event, "sequenceNumber": first + index} for index, event in enumerate(events))
        body = EventsRequest(run_id=context.run_id, events=numbered)
        await self._post("/api/webhooks/agent/events", body, token=context.sandbox_token)

    async def complete(self, outcome: Outcome, *, event_count: int = 0, steps: tuple[TimelineStep, ...] = ()) -> None:
        """Report the end; a run that went well has its checkpoint first, as a guest agent makes it."""
        context = self._claimed
        if outcome == EXITED:
            checkpoint = CheckpointRequest(run_id=context.run_id, cli_agent_type=context.cli_agent_type.value)
            await self._post("/api/webhooks/agent/checkpoints", checkpoint, token=context.sandbox_token)
        body = CompleteRequest(
            run_id=context.run_id,
            outcome=outcome,
            epoch=context.lease.epoch,
            isolation=Isolation.PROCESS,
            timeline=steps,
            event_count=event_count,
        )
        await self._post("/api/webhooks/agent/complete", body)

    @property
    def _claimed(self) -> ExecutionContext:
        assert self.context is not None
        return self.context

    async def _post(self, path: str, body: object, token: str = "") -> bytes:
        headers = {"Authorization": f"Bearer {token or self._served.runner_token}", "Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._served.url}{path}", data=dumps(body), headers=headers) as response,
        ):
            text = await response.read()
            assert response.status == 200, (path, response.status, text)
            return text


@pytest.fixture
def runner(served: Served) -> ScriptedRunner:
    return ScriptedRunner(served)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def eventually(holds: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    """Wait for something another process does and nobody announces."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.02)
    assert holds(), what


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    path = tmp_path / "my project"
    (path / "src").mkdir(parents=True)
    (path / "README").write_text("hello\n")
    (path / "src" / "run.sh").write_text("#!/bin/sh\n")
    (path / "src" / "run.sh").chmod(0o755)
    (path / "link").symlink_to("README")
    yield path
