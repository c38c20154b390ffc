"""The queue: decisions of `domain.leases` applied to rows, each function inside one write transaction.

Functions return the long-poll topics they concern where they can change more than the caller sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from sqlalchemy.engine import Connection, Row

from vm0.contracts.errors import ErrorCode
from vm0.contracts.runner import ClaimRequest, LeaseRequest, ReleaseRequest
from vm0.contracts.runs import Outcome, RunStatus, TimelineStep
from vm0.contracts.webhooks import CompleteRequest
from vm0.server.db import checkpoints, runs, timelines
from vm0.server.db.runs import RunRow
from vm0.server.domain import leases, timeline
from vm0.server.domain.leases import Claim, Ending, RunState, Verdict
from vm0.server.errors import ApiError, lease_lost, not_found
from vm0.server.notifier import queue_topic, run_topic


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Now, on both clocks, and how long a lease lasts."""

    now_ms: int
    monotonic_ms: int
    ttl_ms: int


def existing(connection: Connection, run_id: str) -> RunRow:
    row = runs.load(connection, run_id)
    if row is None:
        raise not_found(f"run {run_id}")
    return row


def owned(connection: Connection, run_id: str, user_id: str) -> RunRow:
    """A user's own run; somebody else's does not exist for them."""
    row = existing(connection, run_id)
    if row.user_id != user_id:
        raise not_found(f"run {run_id}")
    return row


def fenced(connection: Connection, run_id: str, user_id: str, epoch: int) -> RunRow:
    """The run an attempt may write to; raises LEASE_LOST for an older attempt and for a run that is over."""
    row = existing(connection, run_id)
    if row.user_id != user_id:
        raise ApiError(ErrorCode.UNAUTHORIZED, "this token is not for this run")
    if not leases.holds(row.state, epoch):
        raise lease_lost(_why_lost(row.state, epoch))
    return row


def claim(connection: Connection, run_id: str, request: ClaimRequest, times: Times) -> Row[Any]:
    """Lease the run to the caller and return all its columns."""
    row = existing(connection, run_id)
    if row.state.status is RunStatus.RUNNING and row.state.expires_at_ms <= times.monotonic_ms:
        _take_back(connection, row, times)
        row = existing(connection, run_id)
    if not request.isolation.at_least(row.least_isolation):
        raise ApiError(
            ErrorCode.FORBIDDEN,
            f"run {run_id} needs isolation {row.least_isolation.value}; this runner offers {request.isolation.value}",
        )
    state, verdict = leases.claim(row.state, request.runner_id, request.boot_id, times.monotonic_ms, times.ttl_ms)
    if verdict is Claim.TAKEN:
        what = "is over" if row.state.status.terminal else "is claimed by another runner"
        raise ApiError(ErrorCode.CONFLICT, f"run {run_id} {what}")
    if verdict is Claim.GRANTED:
        _save(connection, row, state, started_at_ms=times.now_ms, runner_name=request.runner_name)
        waited = timeline.queued(state.epoch, row.queued_at_ms, times.now_ms)
        timelines.put(connection, row.num, state.epoch, timeline.BEFORE, [waited])
    else:
        _save(connection, row, state)
    return runs.details(connection, row.num)


def renew(connection: Connection, run_id: str, request: LeaseRequest, times: Times) -> RunState:
    row = existing(connection, run_id)
    state, verdict = leases.renew(
        row.state,
        request.runner_id,
        request.boot_id,
        request.epoch,
        request.agent_started,
        times.monotonic_ms,
        times.ttl_ms,
    )
    if verdict is Verdict.LOST:
        raise lease_lost(_why_lost(row.state, request.epoch))
    _save(connection, row, state)
    _report(connection, row, request.timeline)
    return state


def release(connection: Connection, run_id: str, request: ReleaseRequest, times: Times) -> tuple[RunRow, bool]:
    """Give the run back; returns its row as it was and whether it waits again."""
    row = existing(connection, run_id)
    why = request.reason if request.detail is None else f"{request.reason}: {request.detail}"
    state, ending, verdict = leases.release(row.state, request.runner_id, request.epoch, why)
    if verdict is Verdict.LOST:
        raise lease_lost(_why_lost(row.state, request.epoch))
    if verdict is Verdict.DONE:
        _report(connection, row, request.timeline)
        _end_attempt(connection, row, state, "released", why, times)
    return row, ending is Ending.REQUEUED


def cancel(connection: Connection, row: RunRow, times: Times) -> None:
    state, ending = leases.cancel(row.state)
    if ending is Ending.FINISHED:
        _save(connection, row, state, finished_at_ms=times.now_ms)
    elif state != row.state:
        _save(connection, row, state)


def complete(
    connection: Connection, row: RunRow, epoch: int, request: CompleteRequest, observed: Outcome, times: Times
) -> RunStatus:
    """Store the end of the run; repeated, it answers what is stored."""
    has_checkpoint = checkpoints.find(connection, row.num) is not None
    state, verdict = leases.complete(row.state, epoch, observed, has_checkpoint)
    if verdict is Verdict.LOST:
        raise lease_lost(_why_lost(row.state, epoch))
    if verdict is Verdict.DONE:
        _report(connection, row, request.timeline)
        _save(
            connection,
            row,
            state,
            finished_at_ms=times.now_ms,
            isolation=None if request.isolation is None else request.isolation.value,
            event_count=request.event_count,
        )
    return state.status


def take_back_expired(connection: Connection, times: Times) -> tuple[str, ...]:
    """Take back every lease whose time is over; returns whom it concerns."""
    topics: list[str] = []
    for row in runs.expired(connection, times.monotonic_ms):
        _take_back(connection, row, times)
        topics += topics_of(row)
    return tuple(topics)


def topics_of(row: RunRow) -> tuple[str, ...]:
    return run_topic(row.run_id), queue_topic(row.group)


def _take_back(connection: Connection, row: RunRow, times: Times) -> None:
    state, ending = leases.expire(row.state, times.monotonic_ms)
    if ending is not Ending.KEPT:
        who = f"runner {row.state.runner_id} did not renew it within {times.ttl_ms / 1000:g} s"
        _end_attempt(connection, row, state, "lease_expired", who, times)


def _end_attempt(connection: Connection, row: RunRow, state: RunState, phase: str, detail: str, times: Times) -> None:
    step = TimelineStep(
        phase=phase,
        started_at_ms=times.now_ms,
        duration_ms=0.0,
        ok=False,
        detail=detail[:4096],
        attempt=row.state.epoch,
    )
    timelines.put(connection, row.num, row.state.epoch, timeline.AFTER, [step])
    if state.status.terminal:
        _save(connection, row, state, finished_at_ms=times.now_ms)
    else:
        _save(connection, row, state, queued_at_ms=times.now_ms)


def _save(connection: Connection, row: RunRow, state: RunState, **columns: Any) -> None:
    if not runs.save(connection, row, state, **columns):
        raise RuntimeError(f"run {row.run_id} changed within its own transaction")  # only with a second writer
    if state.status.terminal:
        runs.forget_secrets(connection, row.num)


def _report(connection: Connection, row: RunRow, steps: Iterable[TimelineStep]) -> None:
    told = timeline.of_attempt(row.state.epoch, steps)
    if told:
        timelines.put(connection, row.num, row.state.epoch, timeline.RUNNER, told)


def _why_lost(state: RunState, epoch: int) -> str:
    if state.status.terminal:
        return f"the run is {state.status.value}"
    if state.epoch != epoch:
        return f"the run is at attempt {state.epoch}, this was attempt {epoch}"
    if state.status is RunStatus.PENDING:
        return "the lease expired and the run was queued again"
    return "another runner holds the lease"
