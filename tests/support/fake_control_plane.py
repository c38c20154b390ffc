"""A control plane in memory, over real HTTP, deciding with the server's own lease rules; answers can be spoilt.

`plane.faults["claim"] = ["lost", "500"]` spoils the next two claims: `500` and `refuse:<status>` are answered without
effect, `lost` takes effect and breaks the connection, `hang` takes effect and never answers, `garbage` takes effect and
answers nonsense, `slow:<seconds>` is late.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from vm0.contracts import codec
from vm0.contracts.errors import STATUS, ErrorBody, ErrorCode, ErrorDetail
from vm0.contracts.runner import (
    ClaimRequest,
    ExecutionContext,
    Job,
    Lease,
    LeaseAnswer,
    LeaseRequest,
    PollAnswer,
    PollRequest,
    ReleaseAnswer,
    ReleaseRequest,
)
from vm0.contracts.runs import AgentKind, Isolation, RunStatus
from vm0.contracts.webhooks import CompleteAnswer, CompleteRequest, OkAnswer
from vm0.server.domain import leases
from vm0.server.domain.leases import Claim, Ending, RunState, Verdict

RUNNER_TOKEN = "vm0_runner_for-tests"
SANDBOX_TOKEN = "vm0_sandbox_for-tests"


class Refusal(Exception):
    def __init__(self, code: ErrorCode, message: str = "refused by the test", status: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status or STATUS[code]


@dataclass
class FakeRun:
    run_id: str
    context: dict[str, Any]
    state: RunState
    completions: list[CompleteRequest] = field(default_factory=list)
    releases: list[ReleaseRequest] = field(default_factory=list)
    renewals: list[LeaseRequest] = field(default_factory=list)
    claims: list[ClaimRequest] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class FakeControlPlane:
    """Use as an async context manager; `url` is its address."""

    def __init__(self, ttl_s: float = 30.0) -> None:
        self.ttl_s = ttl_s
        self.runs: dict[str, FakeRun] = {}
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        self.heartbeats: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.object_headers: list[dict[str, str]] = []
        self.changed = asyncio.Condition()
        self.url = ""
        self._never = asyncio.Event()

    async def __aenter__(self) -> FakeControlPlane:
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_post("/api/runners/poll", self._route("poll", self._poll))
        app.router.add_post("/api/runners/heartbeat", self._route("heartbeat", self._heartbeat))
        app.router.add_post("/api/runners/jobs/{run_id}/claim", self._route("claim", self._claim))
        app.router.add_post("/api/runners/jobs/{run_id}/lease", self._route("lease", self._lease))
        app.router.add_post("/api/runners/jobs/{run_id}/release", self._route("release", self._release))
        app.router.add_post("/api/webhooks/agent/complete", self._route("complete", self._complete))
        app.router.add_get("/api/objects/{key:.*}", self._object)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await self._site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._never.set()
        await self._runner.cleanup()

    def add_run(self, *, max_attempts: int = 3, **context: Any) -> FakeRun:
        """A run in the queue. `context` are fields of its ExecutionContext. Wake pollers by `announce`."""
        run_id = str(uuid.uuid4())
        run = FakeRun(run_id, context, RunState(status=RunStatus.PENDING, max_attempts=max_attempts))
        self.runs[run_id] = run
        return run

    async def announce(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Any, limit_s: float = 20.0) -> None:
        """Wait for something that is true after some call."""
        async with asyncio.timeout(limit_s):
            while not condition():
                with contextlib.suppress(TimeoutError):  # leases expire without any call
                    async with asyncio.timeout(0.1), self.changed:
                        await self.changed.wait()

    def add_object(self, data: bytes, key: str = "history") -> tuple[str, str]:
        """(path-absolute signed address, SHA-256) of a stored object."""
        self.objects[key] = data
        return f"/api/objects/{key}?expires=1&signature=abc", hashlib.sha256(data).hexdigest()

    def _route(self, name: str, answer: Any) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.calls.append(name)
            await self.announce()
            self.tokens.add(request.headers.get("Authorization", ""))
            fault = self.faults[name].pop(0) if self.faults[name] else ""
            kind, _, parameter = fault.partition(":")
            try:
                if kind == "500":
                    raise Refusal(ErrorCode.INTERNAL_ERROR)
                if kind == "refuse":
                    raise Refusal(ErrorCode(parameter))
                if kind == "slow":
                    await asyncio.sleep(float(parameter))
                body = await answer(request)
            except Refusal as exc:
                error = ErrorBody(error=ErrorDetail(code=exc.code, message=exc.message))
                return web.Response(status=exc.status, body=codec.dumps(error))
            finally:
                await self.announce()
            if kind == "lost" and request.transport is not None:
                request.transport.abort()
            if kind == "hang":
                await self._never.wait()
            return web.Response(body=b"[]" if kind == "garbage" else codec.dumps(body))

        return handle

    def _run(self, request: web.Request) -> FakeRun:
        run = self.runs.get(request.match_info["run_id"])
        if run is None:
            raise Refusal(ErrorCode.NOT_FOUND)
        return run

    def expire(self) -> bool:
        """Take expired leases back, as the server's housekeeping does; False, for use in conditions."""
        for run in self.runs.values():
            run.state, ending = leases.expire(run.state, self._now())
            if run.state.status.terminal and ending is not Ending.KEPT:
                run.over.set()
        return False

    def _now(self) -> int:
        return time.monotonic_ns() // 1_000_000

    async def _poll(self, request: web.Request) -> PollAnswer:
        asked = codec.loads(PollRequest, await request.read())
        end = time.monotonic() + asked.wait_seconds
        while True:
            self.expire()
            for run in self.runs.values():
                if run.state.status is RunStatus.PENDING:
                    return PollAnswer(job=Job(run_id=run.run_id, cli_agent_type=AgentKind.COMMAND))
            if (left := end - time.monotonic()) <= 0:
                return PollAnswer()
            try:
                async with asyncio.timeout(min(left, 0.1)), self.changed:
                    await self.changed.wait()
            except TimeoutError:
                pass

    async def _claim(self, request: web.Request) -> ExecutionContext:
        run = self._run(request)
        claim = codec.loads(ClaimRequest, await request.read())
        run.state, verdict = leases.claim(
            run.state, claim.runner_id, claim.boot_id, self._now(), int(self.ttl_s * 1000)
        )
        run.claims.append(claim)
        if verdict is Claim.TAKEN:
            raise Refusal(ErrorCode.CONFLICT)
        fields: dict[str, Any] = {
            "run_id": run.run_id,
            "prompt": "true",
            "cli_agent_type": AgentKind.COMMAND,
            "sandbox_token": SANDBOX_TOKEN,
            "working_dir": "/home/user/workspace",
            "lease": Lease(epoch=run.state.epoch, ttl_seconds=self.ttl_s),
            "timeout_seconds": 60,
            "isolation": Isolation.PROCESS,
            "attempt": run.state.epoch,
        }
        return ExecutionContext(**{**fields, **run.context})

    async def _lease(self, request: web.Request) -> LeaseAnswer:
        run, asked = self._run(request), codec.loads(LeaseRequest, await request.read())
        self.expire()
        run.state, verdict = leases.renew(
            run.state,
            asked.runner_id,
            asked.boot_id,
            asked.epoch,
            asked.agent_started,
            self._now(),
            int(self.ttl_s * 1000),
        )
        run.renewals.append(asked)
        if verdict is Verdict.LOST:
            raise Refusal(ErrorCode.LEASE_LOST)
        return LeaseAnswer(ttl_seconds=self.ttl_s, cancel_requested=run.state.cancel_requested)

    async def _release(self, request: web.Request) -> ReleaseAnswer:
        run, asked = self._run(request), codec.loads(ReleaseRequest, await request.read())
        run.state, ending, verdict = leases.release(run.state, asked.runner_id, asked.epoch, asked.reason)
        if verdict is Verdict.LOST:
            raise Refusal(ErrorCode.LEASE_LOST)
        run.releases.append(asked)
        if run.state.status.terminal:
            run.over.set()
        return ReleaseAnswer(requeued=ending is Ending.REQUEUED)

    async def _complete(self, request: web.Request) -> CompleteAnswer:
        asked = codec.loads(CompleteRequest, await request.read())
        run = self.runs.get(asked.run_id)
        if run is None:
            raise Refusal(ErrorCode.NOT_FOUND)
        run.state, verdict = leases.complete(run.state, asked.epoch or 0, asked.observed(), has_checkpoint=True)
        if verdict is Verdict.LOST:
            raise Refusal(ErrorCode.LEASE_LOST)
        run.completions.append(asked)
        run.over.set()
        return CompleteAnswer(success=True, status=run.state.status.value)

    async def _heartbeat(self, request: web.Request) -> OkAnswer:
        self.heartbeats.append(await request.json())
        return OkAnswer()

    async def _object(self, request: web.Request) -> web.StreamResponse:
        self.object_headers.append(dict(request.headers))
        data = self.objects.get(request.match_info["key"])
        return web.Response(status=404) if data is None else web.Response(body=data)
