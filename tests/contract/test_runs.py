"""A run from submit to its end, and what its user sees of it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from typing import Any

import pytest

from tests.contract.plane import Plane, Runner, running_plane


async def test_a_run_from_submit_to_completed(plane: Plane) -> None:
    run_id = await plane.submit(prompt="echo hello", environment={"A": "1"})
    assert (await plane.view(run_id))["status"] == "pending"
    lease = await plane.claim(run_id)
    assert lease.context["prompt"] == "echo hello"
    assert lease.context["environment"] == {"A": "1"}
    steps = [{"phase": "boot", "startedAtMs": 1, "durationMs": 5.5}, {"phase": "agent", "startedAtMs": 2}]
    await plane.renew(lease, agentStarted=True, timeline=steps)
    await plane.events(lease, 0, 1)
    await plane.webhook(lease, "heartbeat")
    await plane.webhook(lease, "checkpoints", cliAgentType="command")
    answer = await plane.complete(lease, exitCode=0, isolation="process", eventCount=2, timeline=steps)
    assert answer == {"success": True, "status": "completed"}
    view = await plane.view(run_id)
    assert view["status"] == "completed"
    assert view["outcome"] == {"kind": "exited", "exitCode": 0}
    assert view["isolation"] == "process"
    assert view["checkpoint"]["checkpointId"]
    assert [step["phase"] for step in view["timeline"]] == ["queued", "boot", "agent"]
    assert (view["eventsReceived"], view["eventsContiguous"], view["attempts"]) == (2, 2, 1)
    assert "firstAbnormalStep" not in view


@pytest.mark.parametrize(
    ("report", "checkpoint", "status", "outcome"),
    [
        ({"exitCode": 0}, True, "completed", {"kind": "exited", "exitCode": 0}),
        ({"exitCode": 0}, False, "failed", {"kind": "exited", "exitCode": 0, "reason": "checkpoint_missing"}),
        ({"exitCode": 3, "error": "no"}, True, "failed", {"kind": "exited", "exitCode": 3, "detail": "no"}),
        ({"outcome": {"kind": "cancelled"}}, False, "cancelled", {"kind": "cancelled"}),
        ({"outcome": {"kind": "signalled", "signal": 9}}, True, "failed", {"kind": "signalled", "signal": 9}),
        (
            {"outcome": {"kind": "timed_out", "reason": "run_timeout"}},
            True,
            "failed",
            {"kind": "timed_out", "reason": "run_timeout"},
        ),
        ({"outcome": {"kind": "unknown"}, "error": "gone"}, True, "failed", {"kind": "unknown", "detail": "gone"}),
    ],
)
async def test_completion_decides_the_status_and_keeps_the_outcome(
    plane: Plane, report: dict[str, Any], checkpoint: bool, status: str, outcome: dict[str, Any]
) -> None:
    lease = await plane.submit_and_claim()
    if checkpoint:
        await plane.webhook(lease, "checkpoints", cliAgentType="command")
    assert (await plane.complete(lease, **report))["status"] == status
    view = await plane.view(lease.run_id)
    assert (view["status"], view["outcome"]) == (status, outcome)


async def test_the_first_completion_stands(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    assert (await plane.complete(lease, exitCode=7))["status"] == "failed"
    before = await plane.view(lease.run_id)
    assert (await plane.complete(lease, outcome={"kind": "cancelled"}))["status"] == "failed"
    by_runner = {"runId": lease.run_id, "exitCode": 0, "epoch": lease.epoch}
    answer = await plane.call("POST", "/api/webhooks/agent/complete", plane.runner_token, by_runner)
    assert answer["status"] == "failed"
    assert await plane.view(lease.run_id) == before


async def test_a_runner_must_name_the_epoch_it_completes(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    body: dict[str, Any] = {"runId": lease.run_id, "exitCode": 1}
    message = await plane.error("POST", "/api/webhooks/agent/complete", plane.runner_token, body, want="BAD_REQUEST")
    assert message.startswith("epoch:")
    body["epoch"] = lease.epoch + 1
    await plane.call("POST", "/api/webhooks/agent/complete", plane.runner_token, body, want="LEASE_LOST")
    body["epoch"] = lease.epoch
    assert (await plane.call("POST", "/api/webhooks/agent/complete", plane.runner_token, body))["status"] == "failed"


async def test_first_abnormal_step_is_shown_and_steps_get_their_real_attempt(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    steps = [
        {"phase": "boot", "startedAtMs": 1, "attempt": 9},
        {"phase": "restore", "startedAtMs": 2, "ok": False, "detail": "no space"},
        {"phase": "agent", "startedAtMs": 3, "ok": False},
    ]
    await plane.complete(lease, exitCode=1, timeline=steps)
    view = await plane.view(lease.run_id)
    assert view["firstAbnormalStep"] == "restore"
    assert {step["attempt"] for step in view["timeline"]} == {1}


async def test_secrets_reach_the_runner_and_are_gone_at_the_end(plane: Plane) -> None:
    secret = f"s3cret-{uuid.uuid4()}"
    lease = await plane.submit_and_claim(environment={"A": "1"}, secrets={"TOKEN": secret, "EMPTY": ""})
    assert lease.context["environment"] == {"A": "1", "TOKEN": secret, "EMPTY": ""}
    assert lease.context["secretValues"] == [secret]
    assert secret in _everything_stored(plane)
    await plane.finish(lease)
    assert secret not in _everything_stored(plane)
    path = plane.handle.context.config.database_path
    plane.handle.context.database.close()  # the last connection moves the log into the file and removes it
    assert secret.encode() not in path.read_bytes()


def _everything_stored(plane: Plane) -> str:
    with sqlite3.connect(plane.handle.context.config.database_path) as connection:
        found = "\n".join(connection.iterdump())
    connection.close()
    return found


@pytest.mark.parametrize(
    ("end", "status"),
    [("cancel", "cancelled"), ("lost", "failed"), ("exhausted", "failed")],
)
async def test_secrets_are_gone_whatever_ends_the_run(plane: Plane, end: str, status: str) -> None:
    run_id = await plane.submit(secrets={"TOKEN": "x-very-secret-x"}, maxAttempts=1)
    if end == "cancel":
        await plane.call("POST", f"/api/runs/{run_id}/cancel", plane.user)
    else:
        await plane.renew(await plane.claim(run_id), agentStarted=end == "lost")
        plane.clock.advance(31)
        await plane.handle.context.take_back_expired()
    assert (await plane.view(run_id))["status"] == status
    assert "x-very-secret-x" not in _everything_stored(plane)


async def test_runs_are_listed_newest_first_page_by_page(plane: Plane) -> None:
    submitted = [await plane.submit() for _ in range(7)]
    await plane.submit(plane.other)
    await plane.call("POST", f"/api/runs/{submitted[3]}/cancel", plane.user)
    seen: list[str] = []
    path = "/api/runs?limit=3"
    while True:
        page = await plane.call("GET", path, plane.user)
        assert len(page["runs"]) <= 3
        seen += [run["runId"] for run in page["runs"]]
        if "nextCursor" not in page:
            break
        path = f"/api/runs?limit=3&cursor={page['nextCursor']}"
    assert seen == submitted[::-1]
    cancelled = await plane.call("GET", "/api/runs?status=cancelled", plane.user)
    assert [run["runId"] for run in cancelled["runs"]] == [submitted[3]]


@pytest.mark.parametrize("state", ["pending", "running", "completed", "failed", "cancelled"])
async def test_cancel_in_every_state_and_again(plane: Plane, state: str) -> None:
    run_id = await plane.submit()
    lease = None
    if state != "pending":
        lease = await plane.claim(run_id)
        match state:
            case "completed":
                await plane.finish(lease)
            case "failed":
                await plane.complete(lease, exitCode=1)
            case "cancelled":
                await plane.complete(lease, outcome={"kind": "cancelled"})
    before = await plane.view(run_id)
    first = await plane.call("POST", f"/api/runs/{run_id}/cancel", plane.user)
    again = await plane.call("POST", f"/api/runs/{run_id}/cancel", plane.user)
    assert first == again
    match state:
        case "pending":
            assert first["status"] == "cancelled"
            assert first["outcome"]["kind"] == "cancelled"
            await plane.call(
                "POST", f"/api/runners/jobs/{run_id}/claim", plane.runner_token, Runner().body(), want="CONFLICT"
            )
        case "running":
            assert (first["status"], first["cancelRequested"]) == ("running", True)
            assert lease is not None
            assert (await plane.renew(lease))["cancelRequested"] is True
            await plane.complete(lease, outcome={"kind": "cancelled"})
            assert (await plane.view(run_id))["status"] == "cancelled"
        case _:
            assert first == before


async def test_events_are_stored_once_and_shown_without_gaps(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    answer = await plane.events(lease, 3, 1, 0)
    assert answer == {"received": 3, "firstSequence": 0, "lastSequence": 3}
    path = f"/api/runs/{lease.run_id}/events"
    page = await plane.call("GET", path, plane.user)
    assert [event["sequenceNumber"] for event in page["events"]] == [0, 1]
    assert (page["nextAfter"], page["complete"], page["missing"]) == (1, False, 2)
    repeated = [{"type": "changed", "sequenceNumber": 1}, {"type": "late", "sequenceNumber": 2, "x": {"y": [1.5]}}]
    await plane.webhook(lease, "events", events=repeated)
    page = await plane.call("GET", f"{path}?after=0", plane.user)
    assert [event["type"] for event in page["events"]] == ["line", "late", "line"], "the first delivery is kept"
    assert page["events"][1] == repeated[1]
    assert "missing" not in page
    assert (await plane.view(lease.run_id))["eventsReceived"] == 4
    first = await plane.call("GET", f"{path}?limit=1", plane.user)
    assert len(first["events"]) == 1 and first["nextAfter"] == 0


@pytest.mark.parametrize(
    ("count", "stored", "missing"), [(3, (0, 1, 2), None), (5, (0, 1, 2), 3), (4, (0, 1, 3), 2), (2, (), 0)]
)
async def test_what_the_agent_sent_and_nobody_stored_is_named(
    plane: Plane, count: int, stored: tuple[int, ...], missing: int | None
) -> None:
    lease = await plane.submit_and_claim()
    if stored:
        await plane.events(lease, *stored)
    await plane.complete(lease, exitCode=1, eventCount=count)
    page = await plane.call("GET", f"/api/runs/{lease.run_id}/events?wait=30", plane.user)
    assert page.get("missing") == missing
    assert page["complete"] is True


async def test_waiting_for_events_ends_with_the_first_one_and_with_the_run(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    path = f"/api/runs/{lease.run_id}/events?wait=30"
    started = time.monotonic()
    waiting = asyncio.create_task(plane.call("GET", path, plane.user))
    await plane.waited_for(f"run/{lease.run_id}")
    await plane.events(lease, 0)
    page = await waiting
    assert len(page["events"]) == 1 and not page["complete"]
    waiting = asyncio.create_task(plane.call("GET", f"{path}&after=0", plane.user))
    await plane.waited_for(f"run/{lease.run_id}")
    await plane.complete(lease, exitCode=1)
    page = await waiting
    assert page["events"] == [] and page["complete"]
    assert time.monotonic() - started < 15


async def test_events_answer_empty_when_nothing_comes(plane: Plane) -> None:
    run_id = await plane.submit()
    page = await plane.call("GET", f"/api/runs/{run_id}/events?wait=0.2", plane.user)
    assert page == {"events": [], "nextAfter": -1, "complete": False}


async def test_free_form_events_come_back_as_they_were(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    event = {"type": "x", "sequenceNumber": 0, "text": "\u0000é😀\ud800", "deep": [[[{"a": None}]]], "n": 10**40}
    await plane.webhook(lease, "events", events=[event])
    page = await plane.call("GET", f"/api/runs/{lease.run_id}/events", plane.user)
    assert page["events"] == [event]


async def test_a_page_of_large_events_is_bounded_and_the_rest_follows(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    for number in range(0, 15, 5):
        batch = [{"type": "big", "sequenceNumber": n, "text": "x" * 1024 * 1024} for n in range(number, number + 5)]
        await plane.webhook(lease, "events", events=batch)
    after, seen = -1, 0
    pages = 0
    while seen < 15:
        page = await plane.call("GET", f"/api/runs/{lease.run_id}/events?after={after}", plane.user)
        assert 0 < len(page["events"]) <= 9
        after, seen, pages = page["nextAfter"], seen + len(page["events"]), pages + 1
    assert pages == 2


async def test_logs_are_appended_and_bounded(tmp_path: Any) -> None:
    async with running_plane(tmp_path / "s", max_system_log_bytes=100, max_telemetry_records=3) as plane:
        lease = await plane.submit_and_claim()
        metric = {
            "ts": "2026-01-01T00:00:00Z",
            "cpu": 1.5,
            "mem_used": 1,
            "mem_total": 2,
            "disk_used": 3,
            "disk_total": 4,
        }
        operation = {"ts": "2026-01-01T00:00:00Z", "action_type": "a", "duration_ms": 1, "success": True}
        await plane.webhook(lease, "telemetry", systemLog="é" * 30, metrics=[metric])
        await plane.webhook(lease, "telemetry", systemLog="é" * 30, metrics=[metric] * 5, sandboxOperations=[operation])
        await plane.webhook(lease, "telemetry", systemLog="never kept", networkLogs=[{"host": "a", "n": 1}])
        logs = await plane.call("GET", f"/api/runs/{lease.run_id}/logs", plane.user)
    assert logs["systemLog"].startswith("é" * 50 + "\n[vm0] the system log is full")
    assert logs["systemLog"].count("full") == 1 and "never kept" not in logs["systemLog"]
    assert logs["metrics"] == [metric] * 3
    assert logs["sandboxOperations"][0]["action_type"] == "a"
    assert logs["networkLogs"] == [{"host": "a", "n": 1}]
