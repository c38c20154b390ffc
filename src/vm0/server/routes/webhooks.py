"""`/api/webhooks/agent`: what a run tells about itself, each write fenced by the epoch in its token."""

from __future__ import annotations

import dataclasses

from sqlalchemy.engine import Connection

from vm0.contracts import codec
from vm0.contracts.errors import ErrorCode
from vm0.contracts.runs import RunStatus
from vm0.contracts.storages import CommitAnswer, CommitRequest, PrepareAnswer, PrepareRequest, StorageType
from vm0.contracts.webhooks import (
    CheckpointAnswer,
    CheckpointRequest,
    CompleteAnswer,
    CompleteRequest,
    EventsAnswer,
    EventsRequest,
    HeartbeatRequest,
    OkAnswer,
    PrepareHistoryAnswer,
    PrepareHistoryRequest,
    TelemetryAnswer,
    TelemetryRequest,
)
from vm0.server import queue, versions
from vm0.server.context import Change
from vm0.server.db import checkpoints, events, runs, storages, telemetry
from vm0.server.db.runs import RunRow
from vm0.server.errors import ApiError, bad_request, lease_lost
from vm0.server.notifier import run_topic
from vm0.server.objects import blob_key
from vm0.server.routing import LARGE_BYTES, MIB, Call, Caller, RouteSpec, contract_router, declare
from vm0.server.tokens import SandboxPrincipal

router = contract_router("webhooks")
SANDBOX = (Caller.SANDBOX,)
BASE = "/api/webhooks/agent"


def _sandbox(call: Call[object], run_id: str | None) -> SandboxPrincipal:
    """The token's run must be the body's."""
    if run_id is None:
        raise bad_request("runId", "is required")
    if call.sandbox.run_id != run_id:
        raise ApiError(ErrorCode.UNAUTHORIZED, "this token is for another run")
    return call.sandbox


def _fenced(connection: Connection, principal: SandboxPrincipal) -> RunRow:
    return queue.fenced(connection, principal.run_id, principal.user_id, principal.epoch)


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/events",
        callers=SANDBOX,
        body=EventsRequest,
        answer=EventsAnswer,
        max_body_bytes=32 * MIB,
    ),
)
async def add_events(call: Call[EventsRequest]) -> EventsAnswer:
    """Store a batch of events; repeating one is harmless."""
    principal = _sandbox(call, call.body.run_id)
    if call.reader.announced > LARGE_BYTES:
        rows = await call.context.in_thread(events.as_rows, call.body.events)
    else:
        rows = events.as_rows(call.body.events)

    def store(connection: Connection) -> Change[None]:
        events.append(connection, _fenced(connection, principal).num, rows)
        return Change(None, (run_topic(principal.run_id),))

    await call.context.change(store)
    numbers = [number for number, _ in rows]
    return EventsAnswer(received=len(rows), first_sequence=min(numbers), last_sequence=max(numbers))


@declare(
    router,
    RouteSpec(method="POST", path=f"{BASE}/heartbeat", callers=SANDBOX, body=HeartbeatRequest, answer=OkAnswer),
)
async def heartbeat(call: Call[HeartbeatRequest]) -> OkAnswer:
    """The agent lives."""
    principal = _sandbox(call, call.body.run_id)
    now_ms = call.context.clock.now_ms()
    await call.context.database.write(lambda c: runs.touch(c, _fenced(c, principal).num, now_ms))
    return OkAnswer()


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/telemetry",
        callers=SANDBOX,
        body=TelemetryRequest,
        answer=TelemetryAnswer,
        max_body_bytes=16 * MIB,
    ),
)
async def add_telemetry(call: Call[TelemetryRequest]) -> TelemetryAnswer:
    """Append to the system log, metrics, timed operations and network log, up to a limit per run."""
    body, config = call.body, call.context.config
    principal = _sandbox(call, body.run_id)
    streams = {
        "metrics": [codec.encode(metric) for metric in body.metrics],
        "sandbox_operations": [codec.encode(operation) for operation in body.sandbox_operations],
        "network_logs": list(body.network_logs),
    }

    def store(connection: Connection) -> None:
        num = _fenced(connection, principal).num
        telemetry.append_system_log(connection, num, body.system_log, config.max_system_log_bytes)
        for stream, records in streams.items():
            telemetry.append_records(connection, num, stream, records, config.max_telemetry_records)

    await call.context.database.write(store)
    return TelemetryAnswer(success=True, id=body.run_id)


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/checkpoints/prepare-history",
        callers=SANDBOX,
        body=PrepareHistoryRequest,
        answer=PrepareHistoryAnswer,
    ),
)
async def prepare_history(call: Call[PrepareHistoryRequest]) -> PrepareHistoryAnswer:
    """Where to upload a session history, unless it is stored already."""
    principal = _sandbox(call, call.body.run_id)
    await call.context.database.read(lambda connection: _fenced(connection, principal))
    key = blob_key(principal.user_id, call.body.hash)
    if await call.context.in_thread(call.context.objects.exists, key):
        return PrepareHistoryAnswer(existing=True)
    return PrepareHistoryAnswer(existing=False, presigned_url=call.context.signer.sign("PUT", key, call.body.size))


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/checkpoints",
        callers=SANDBOX,
        body=CheckpointRequest,
        answer=CheckpointAnswer,
    ),
)
async def checkpoint(call: Call[CheckpointRequest]) -> CheckpointAnswer:
    """Store what a later run can resume from; everything it names must be stored already."""
    body, context = call.body, call.context
    principal = _sandbox(call, body.run_id)
    history = body.cli_agent_session_history_hash
    if history is not None:
        key = blob_key(principal.user_id, history)
        if not await context.in_thread(context.objects.exists, key):
            raise bad_request("cliAgentSessionHistoryHash", "no history with this hash was uploaded")
    now_ms = context.clock.now_ms()

    def store(connection: Connection) -> str:
        num = _fenced(connection, principal).num
        _check_snapshots(connection, principal.user_id, body)
        return checkpoints.put(connection, num, body, now_ms)

    checkpoint_id = await context.database.write(store)
    return CheckpointAnswer(checkpoint_id=checkpoint_id, agent_session_id=body.cli_agent_session_id)


def _check_snapshots(connection: Connection, user_id: str, body: CheckpointRequest) -> None:
    def check(path: str, kind: StorageType, name: str, version: str) -> None:
        storage = storages.find(connection, user_id, kind, name)
        if storage is None or storages.find_version(connection, storage.storage_id, version) is None:
            raise bad_request(path, f"{kind.value} {name!r} has no such version; commit it first")

    artifact, memory = body.artifact_snapshot, body.memory_snapshot
    if artifact is not None:
        where = "artifactSnapshot.artifactVersion"
        check(where, StorageType.ARTIFACT, artifact.artifact_name, artifact.artifact_version)
    if memory is not None:
        check("memorySnapshot.memoryVersion", StorageType.MEMORY, memory.memory_name, memory.memory_version)


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/complete",
        callers=(Caller.SANDBOX, Caller.RUNNER),
        body=CompleteRequest,
        answer=CompleteAnswer,
        max_body_bytes=4 * MIB,
    ),
)
async def complete(call: Call[CompleteRequest]) -> CompleteAnswer:
    """The end of a run. The first report stands; a repeated one gets the stored status."""
    body, context = call.body, call.context
    epoch = body.epoch
    user_id = None
    if isinstance(call.principal, SandboxPrincipal):
        principal = _sandbox(call, body.run_id)
        epoch, user_id = principal.epoch, principal.user_id
    elif epoch is None:
        raise bad_request("epoch", "is required with a runner token")
    if body.epoch is not None and body.epoch != epoch:
        raise lease_lost(f"the token is of attempt {epoch}, the report of attempt {body.epoch}")
    observed = body.observed()
    if observed.detail is None and body.error is not None:
        observed = dataclasses.replace(observed, detail=body.error)
    times = context.times()

    def store(connection: Connection) -> Change[RunStatus]:
        row = queue.existing(connection, body.run_id)
        if user_id is not None and row.user_id != user_id:
            raise ApiError(ErrorCode.UNAUTHORIZED, "this token is not for this run")
        return Change(queue.complete(connection, row, epoch, body, observed, times), (run_topic(body.run_id),))

    status = await context.change(store)
    return CompleteAnswer(success=True, status=status.value)


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/storages/prepare",
        callers=SANDBOX,
        body=PrepareRequest,
        answer=PrepareAnswer,
        max_body_bytes=64 * MIB,
    ),
)
async def prepare(call: Call[PrepareRequest]) -> PrepareAnswer:
    """Announce a version of the run's artifact or memory."""
    return await versions.prepare(call.context, _sandbox(call, call.body.run_id), call.body)


@declare(
    router,
    RouteSpec(
        method="POST",
        path=f"{BASE}/storages/commit",
        callers=SANDBOX,
        body=CommitRequest,
        answer=CommitAnswer,
        max_body_bytes=64 * MIB,
    ),
)
async def commit(call: Call[CommitRequest]) -> CommitAnswer:
    """Make an uploaded version of the run's artifact or memory visible."""
    return await versions.commit(call.context, _sandbox(call, call.body.run_id), call.body)
