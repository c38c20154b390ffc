"""Rows of runs: inserted, loaded as `RunState` for the decisions, saved back fenced, found for pollers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from vm0.contracts import codec
from vm0.contracts.runs import Isolation, Outcome, RunRequest, RunStatus
from vm0.server.db.schema import run_secrets, runs
from vm0.server.domain.leases import RunState
from vm0.server.domain.mounts import MountPlan

ISOLATION_RANK = {tier: rank for rank, tier in enumerate(Isolation)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionRef:
    """A session of an earlier run, kept with the run that resumes it."""

    session_id: str
    history_hash: str


@dataclasses.dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the routes need it: identity and the state the decisions look at."""

    num: int
    run_id: str
    user_id: str
    group: str
    queued_at_ms: int
    least_isolation: Isolation
    state: RunState


STATE_COLUMNS = (
    runs.c.num,
    runs.c.run_id,
    runs.c.user_id,
    runs.c.group_name,
    runs.c.queued_at_ms,
    runs.c.least_isolation,
    runs.c.status,
    runs.c.epoch,
    runs.c.max_attempts,
    runs.c.runner_id,
    runs.c.boot_id,
    runs.c.expires_at_ms,
    runs.c.agent_started,
    runs.c.cancel_requested,
    runs.c.outcome,
)

# Statements of the hot paths are made once: building one costs more than running it. The statuses that partial
# indexes are about are literals, because SQLite uses such an index only if it can see that it applies.
LEASED = runs.c.status == sa.literal_column("'running'")
LOAD = sa.select(*STATE_COLUMNS).where(runs.c.run_id == sa.bindparam("wanted"))
DETAILS = sa.select(runs).where(runs.c.num == sa.bindparam("wanted"))
INSERT = sa.insert(runs)
SAVE = sa.update(runs).where(
    runs.c.num == sa.bindparam("decided_num"),
    runs.c.status == sa.bindparam("decided_status"),
    runs.c.epoch == sa.bindparam("decided_epoch"),
)
TOUCH = sa.update(runs).where(runs.c.num == sa.bindparam("wanted"))
EXPIRED = (
    sa.select(*STATE_COLUMNS)
    .where(LEASED, runs.c.expires_at_ms <= sa.bindparam("now"))
    .order_by(runs.c.expires_at_ms)
    .limit(sa.bindparam("count"))
)
WAITING = (
    sa.select(runs.c.run_id, runs.c.request)
    .where(
        runs.c.status == sa.literal_column("'pending'"),
        runs.c.group_name == sa.bindparam("group"),
        runs.c.least_isolation <= sa.bindparam("rank"),
    )
    .order_by(runs.c.num)
    .limit(sa.bindparam("count"))
)
SECRETS = sa.select(run_secrets.c.secrets).where(run_secrets.c.run_num == sa.bindparam("num"))
FORGET_SECRETS = sa.delete(run_secrets).where(run_secrets.c.run_num == sa.bindparam("num"))


def insert(
    connection: Connection,
    *,
    run_id: str,
    user_id: str,
    request: RunRequest,
    mounts: MountPlan,
    session: SessionRef | None,
    now_ms: int,
) -> int:
    """Queue a run and return its number. Secrets go to a table of their own, which is emptied at the end."""
    stored = dataclasses.replace(request, secrets={})
    result = connection.execute(
        INSERT,
        {
            "run_id": run_id,
            "user_id": user_id,
            "status": RunStatus.PENDING.value,
            "group_name": request.group,
            "least_isolation": ISOLATION_RANK[request.isolation],
            "request": codec.dumps(stored).decode(),
            "mounts": codec.dumps(mounts).decode(),
            "resume_session": None if session is None else codec.dumps(session).decode(),
            "created_at_ms": now_ms,
            "queued_at_ms": now_ms,
            "max_attempts": request.max_attempts,
        },
    )
    num = int((result.inserted_primary_key or (0,))[0])
    if request.secrets:
        connection.execute(sa.insert(run_secrets).values(run_num=num, secrets=json.dumps(request.secrets)))
    return num


def load(connection: Connection, run_id: str) -> RunRow | None:
    row = connection.execute(LOAD, {"wanted": run_id}).one_or_none()
    return None if row is None else _run_row(row)


def expired(connection: Connection, now_ms: int, limit: int = 200) -> list[RunRow]:
    """Runs whose lease is over and was not taken back yet."""
    return [_run_row(row) for row in connection.execute(EXPIRED, {"now": now_ms, "count": limit})]


def has_expired(connection: Connection, now_ms: int) -> bool:
    return connection.execute(EXPIRED, {"now": now_ms, "count": 1}).first() is not None


def cancelled_of(connection: Connection, runner_id: str) -> list[str]:
    """Runs that this runner executes and whose user asked for their end."""
    query = sa.select(runs.c.run_id).where(
        runs.c.status == RunStatus.RUNNING.value, runs.c.runner_id == runner_id, runs.c.cancel_requested
    )
    return list(connection.scalars(query))


def waiting(connection: Connection, group: str, offered: Isolation, limit: int) -> Sequence[Row[str, str]]:
    """`run_id, request` of the oldest waiting runs that accept the offered isolation."""
    return connection.execute(WAITING, {"group": group, "rank": ISOLATION_RANK[offered], "count": limit}).all()


def save(connection: Connection, row: RunRow, state: RunState, **columns: Any) -> bool:
    """Write a decision in one conditional UPDATE; False if the row is not as it was decided upon."""
    values = {
        "status": state.status.value,
        "epoch": state.epoch,
        "runner_id": state.runner_id,
        "boot_id": state.boot_id,
        "expires_at_ms": state.expires_at_ms,
        "agent_started": state.agent_started,
        "cancel_requested": state.cancel_requested,
        "outcome": None if state.outcome is None else codec.dumps(state.outcome).decode(),
        **columns,
    }
    before = {"decided_num": row.num, "decided_status": row.state.status.value, "decided_epoch": row.state.epoch}
    return connection.execute(SAVE, values | before).rowcount == 1


def forget_secrets(connection: Connection, num: int) -> None:
    connection.execute(FORGET_SECRETS, {"num": num})


def secrets_of(connection: Connection, num: int) -> dict[str, str]:
    text = connection.execute(SECRETS, {"num": num}).scalar()
    found: dict[str, str] = json.loads(text) if text else {}
    return found


def details(connection: Connection, num: int) -> Row[Any]:
    """Every column of one run."""
    return connection.execute(DETAILS, {"wanted": num}).one()


def page(
    connection: Connection, user_id: str, *, before: int | None, status: RunStatus | None, limit: int
) -> Sequence[Row[Any]]:
    """Every column of a user's runs, newest first."""
    query = sa.select(runs).where(runs.c.user_id == user_id)
    if before is not None:
        query = query.where(runs.c.num < before)
    if status is not None:
        query = query.where(runs.c.status == status.value)
    return connection.execute(query.order_by(runs.c.num.desc()).limit(limit)).all()


def touch(connection: Connection, num: int, now_ms: int) -> None:
    connection.execute(TOUCH, {"wanted": num, "last_heartbeat_ms": now_ms})


def extend_all_leases(connection: Connection, expires_at_ms: int) -> int:
    """Give every live lease until then: at a start, since expiries of an earlier process mean nothing to us."""
    return connection.execute(sa.update(runs).where(LEASED).values(expires_at_ms=expires_at_ms)).rowcount


def _run_row(row: Row[*tuple[Any, ...]]) -> RunRow:
    state = RunState(
        status=RunStatus(row.status),
        epoch=row.epoch,
        max_attempts=row.max_attempts,
        runner_id=row.runner_id,
        boot_id=row.boot_id,
        expires_at_ms=row.expires_at_ms,
        agent_started=row.agent_started,
        cancel_requested=row.cancel_requested,
        outcome=None if row.outcome is None else codec.loads(Outcome, row.outcome),
    )
    least = list(Isolation)[row.least_isolation]
    return RunRow(row.num, row.run_id, row.user_id, row.group_name, row.queued_at_ms, least, state)
