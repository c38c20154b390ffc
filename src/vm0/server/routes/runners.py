"""`/api/runners`: how runners find, claim, keep and give back runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from sqlalchemy.engine import Connection, Row

from vm0.contracts import codec
from vm0.contracts.manifest import ManifestEntry, StorageManifest
from vm0.contracts.runner import (
    CancellationsAnswer,
    CancellationsRequest,
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
    ResumeSession,
    RunnerHeartbeat,
    RunnerList,
)
from vm0.contracts.runs import AgentKind
from vm0.contracts.storages import StorageType
from vm0.contracts.webhooks import OkAnswer
from vm0.server import queue
from vm0.server.context import Change, ServerContext
from vm0.server.db import runs
from vm0.server.db.runs import SessionRef
from vm0.server.domain.mounts import MountPlan, ResolvedMount
from vm0.server.notifier import queue_topic, run_topic, runner_topic
from vm0.server.objects import blob_key, version_key
from vm0.server.routes.runs import run_id_of
from vm0.server.routing import Call, Caller, RouteSpec, contract_router, declare
from vm0.server.versions import ARCHIVE
from vm0.server.views import stored_request

router = contract_router("runners")
RUNNER = (Caller.RUNNER,)
CANDIDATES = 64  # of the queue's head, to spread pollers over


@declare(
    router,
    RouteSpec(method="POST", path="/api/runners/poll", callers=RUNNER, body=PollRequest, answer=PollAnswer),
)
async def poll(call: Call[PollRequest]) -> PollAnswer:
    """The oldest waiting run this runner may execute; with `waitSeconds`, waits for one to be submitted."""
    context, request = call.context, call.body
    deadline = asyncio.get_running_loop().time() + request.wait_seconds
    with context.notifier.subscribed(queue_topic(request.group)) as submitted:
        while True:
            submitted.clear()
            await context.take_back_expired()
            found = await context.database.read(
                lambda connection: runs.waiting(connection, request.group, request.isolation, CANDIDATES)
            )
            if found:
                chosen = context.offers.pick(found)
                kind = json.loads(chosen.request)["cliAgentType"]
                return PollAnswer(job=Job(run_id=chosen.run_id, cli_agent_type=AgentKind(kind)))
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or context.notifier.closed:
                return PollAnswer()
            try:
                async with asyncio.timeout(left):
                    await submitted.wait()
            except TimeoutError:
                pass


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/runners/jobs/{runId}/claim",
        callers=RUNNER,
        body=ClaimRequest,
        answer=ExecutionContext,
    ),
)
async def claim(call: Call[ClaimRequest]) -> ExecutionContext:
    """Lease a run. Repeated by the same runner and boot while the lease lives, it gives the same lease again."""
    run_id, context = run_id_of(call), call.context
    times = context.times()

    def apply(connection: Connection) -> Change[tuple[Row[Any], dict[str, str]]]:
        row = queue.claim(connection, run_id, call.body, times)
        return Change((row, runs.secrets_of(connection, row.num)), (run_topic(run_id),))

    row, secrets = await context.change(apply)
    context.offers.settled(run_id)
    return _execution_context(context, row, secrets)


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/runners/jobs/{runId}/lease",
        callers=RUNNER,
        body=LeaseRequest,
        answer=LeaseAnswer,
    ),
)
async def renew(call: Call[LeaseRequest]) -> LeaseAnswer:
    """Keep a lease, and say what was done so far."""
    run_id, times = run_id_of(call), call.context.times()
    state = await call.context.database.write(lambda c: queue.renew(c, run_id, call.body, times))
    return LeaseAnswer(ttl_seconds=call.context.config.lease_ttl_s, cancel_requested=state.cancel_requested)


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/runners/cancellations",
        callers=RUNNER,
        body=CancellationsRequest,
        answer=CancellationsAnswer,
    ),
)
async def cancellations(call: Call[CancellationsRequest]) -> CancellationsAnswer:
    """Runs of this runner that shall end; with `waitSeconds`, waits for the first that it does not know of."""
    context, request = call.context, call.body
    deadline = asyncio.get_running_loop().time() + request.wait_seconds
    with context.notifier.subscribed(runner_topic(request.runner_id)) as cancelled:
        while True:
            cancelled.clear()
            asked = await context.database.read(lambda connection: runs.cancelled_of(connection, request.runner_id))
            new = tuple(run_id for run_id in asked if run_id not in request.known)
            left = deadline - asyncio.get_running_loop().time()
            if new or left <= 0 or context.notifier.closed:
                return CancellationsAnswer(run_ids=new)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await cancelled.wait()


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/runners/jobs/{runId}/release",
        callers=RUNNER,
        body=ReleaseRequest,
        answer=ReleaseAnswer,
    ),
)
async def release(call: Call[ReleaseRequest]) -> ReleaseAnswer:
    """Give a run back whose agent has not started."""
    run_id, times = run_id_of(call), call.context.times()

    def apply(connection: Connection) -> Change[bool]:
        row, requeued = queue.release(connection, run_id, call.body, times)
        return Change(requeued, queue.topics_of(row))

    requeued = await call.context.change(apply)
    call.context.offers.settled(run_id)
    return ReleaseAnswer(requeued=requeued)


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/runners/heartbeat",
        callers=RUNNER,
        body=RunnerHeartbeat,
        answer=OkAnswer,
    ),
)
async def heartbeat(call: Call[RunnerHeartbeat]) -> OkAnswer:
    """What a runner is and does now."""
    call.context.registry.heard(call.body)
    return OkAnswer()


@declare(router, RouteSpec(method="GET", path="/api/runners", callers=(Caller.USER,), answer=RunnerList))
async def index(call: Call[None]) -> RunnerList:
    """The runners heard of in the last minutes."""
    return RunnerList(runners=call.context.registry.views())


def _execution_context(context: ServerContext, row: Row[Any], secrets: dict[str, str]) -> ExecutionContext:
    request = stored_request(row)
    lifetime_s = request.timeout_seconds + context.config.sandbox_token_margin_s
    token = context.tokens.mint_sandbox(row.user_id, row.run_id, row.epoch, row.started_at_ms, lifetime_s)
    return ExecutionContext(
        run_id=row.run_id,
        prompt=request.prompt,
        cli_agent_type=request.cli_agent_type,
        sandbox_token=token,
        working_dir=request.working_dir,
        lease=Lease(epoch=row.epoch, ttl_seconds=context.config.lease_ttl_s),
        timeout_seconds=request.timeout_seconds,
        isolation=request.isolation,
        environment=request.environment | secrets,
        secret_values=tuple(value for value in secrets.values() if value),
        storage_manifest=_manifest(context, row),
        resume_session=_session(context, row),
        append_system_prompt=request.append_system_prompt,
        tools=request.tools,
        disallowed_tools=request.disallowed_tools,
        settings=request.settings,
        user_timezone=request.user_timezone,
        api_start_time=row.created_at_ms,
        attempt=row.epoch,
    )


def _manifest(context: ServerContext, row: Row[Any]) -> StorageManifest | None:
    plan = codec.loads(MountPlan, row.mounts)
    if not plan.mounts:
        return None

    def entry(mount: ResolvedMount | None) -> ManifestEntry | None:
        if mount is None:
            return None
        url = None
        if mount.has_archive and mount.version_id is not None:
            key = version_key(row.user_id, mount.storage_type, mount.name, mount.version_id, ARCHIVE)
            url = context.signer.sign("GET", key)
        return ManifestEntry(
            mount_path=mount.mount_path,
            archive_url=url,
            vas_storage_name=mount.name,
            vas_version_id=mount.version_id,
        )

    volumes = [entry(mount) for mount in plan.mounts if mount.storage_type is StorageType.VOLUME]
    return StorageManifest(
        storages=tuple(volume for volume in volumes if volume is not None),
        artifact=entry(plan.of(StorageType.ARTIFACT)),
        memory=entry(plan.of(StorageType.MEMORY)),
    )


def _session(context: ServerContext, row: Row[Any]) -> ResumeSession | None:
    if row.resume_session is None:
        return None
    session = codec.loads(SessionRef, row.resume_session)
    return ResumeSession(
        session_id=session.session_id,
        session_history_url=context.signer.sign("GET", blob_key(row.user_id, session.history_hash)),
        session_history_hash=session.history_hash,
    )
