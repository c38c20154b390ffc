"""Runners and the queue: poll, claim, renew, give back, expire, race."""

from __future__ import annotations

import asyncio
import collections
import time
import uuid
from typing import Any

import pytest

from tests.contract.plane import Claimed, Plane, Runner

POLL = "/api/runners/poll"
TTL_S = 30.0


def claim_path(run_id: str) -> str:
    return f"/api/runners/jobs/{run_id}/claim"


async def poll(plane: Plane, **fields: Any) -> str | None:
    answer = await plane.call("POST", POLL, plane.runner_token, {"group": "vm0/default", **fields})
    return answer["job"]["runId"] if "job" in answer else None


async def expire(plane: Plane) -> None:
    plane.clock.advance(TTL_S + 1)
    await plane.handle.context.take_back_expired()


async def test_runs_are_offered_in_the_order_of_their_submission(plane: Plane) -> None:
    submitted = [await plane.submit() for _ in range(5)]
    offered = []
    while (run_id := await poll(plane)) is not None:
        offered.append(run_id)
        await plane.claim(run_id)
    assert offered == submitted


async def test_a_run_given_back_keeps_its_place(plane: Plane) -> None:
    first, second = [await plane.submit() for _ in range(2)]
    lease = await plane.claim(first)
    await _release(plane, lease)
    assert [await poll(plane), await poll(plane)] == [first, second]


@pytest.mark.parametrize(
    ("least", "offered", "found"),
    [
        ("process", "process", True),
        ("process", "hardware-vm", True),
        ("emulated-vm", "process", False),
        ("emulated-vm", "emulated-vm", True),
        ("hardware-vm", "emulated-vm", False),
        ("hardware-vm", "hardware-vm", True),
    ],
)
async def test_a_run_only_goes_to_a_runner_with_its_isolation(
    plane: Plane, least: str, offered: str, found: bool
) -> None:
    run_id = await plane.submit(isolation=least)
    assert await poll(plane, isolation=offered) == (run_id if found else None)
    body = Runner().body(isolation=offered)
    await plane.call("POST", claim_path(run_id), plane.runner_token, body, want=200 if found else "FORBIDDEN")


async def test_groups_do_not_see_each_other(plane: Plane) -> None:
    run_id = await plane.submit(group="team/gpu")
    assert await poll(plane) is None
    assert await poll(plane, group="team/gpu") == run_id


async def test_a_waiting_poll_is_woken_by_a_submit(plane: Plane) -> None:
    started = time.monotonic()
    waiting = asyncio.create_task(poll(plane, waitSeconds=30))
    await plane.waited_for("group/vm0/default")
    run_id = await plane.submit()
    assert await waiting == run_id
    assert time.monotonic() - started < 15


async def test_a_waiting_poll_is_woken_by_a_run_that_was_given_back(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    waiting = asyncio.create_task(poll(plane, waitSeconds=30))
    await plane.waited_for("group/vm0/default")
    await _release(plane, lease)
    assert await waiting == lease.run_id


async def test_a_waiting_poll_ends_empty_after_its_time(plane: Plane) -> None:
    assert await poll(plane, waitSeconds=0.2) is None


async def test_a_claim_whose_answer_was_lost_is_repeated(plane: Plane) -> None:
    run_id, runner = await plane.submit(secrets={"A": "b"}), Runner()
    first = await plane.claim(run_id, runner)
    plane.clock.advance(TTL_S - 1)  # a repetition also renews
    again = await plane.claim(run_id, runner)
    plane.clock.advance(TTL_S - 1)
    assert again == first
    await plane.events(again, 0)
    assert (await plane.view(run_id))["attempts"] == 1


@pytest.mark.parametrize("who", ["other runner", "same runner after a restart"])
async def test_a_claimed_run_is_a_conflict_for_everybody_else(plane: Plane, who: str) -> None:
    lease = await plane.submit_and_claim()
    runner_id = lease.runner.runner_id if who.startswith("same") else str(uuid.uuid4())
    body = Runner(runner_id).body()
    await plane.call("POST", claim_path(lease.run_id), plane.runner_token, body, want="CONFLICT")


@pytest.mark.parametrize("run_id", ["00000000-0000-4000-8000-000000000000", "nonsense", "..%2f..", "%00"])
async def test_an_unknown_run_cannot_be_claimed(plane: Plane, run_id: str) -> None:
    await plane.call("POST", claim_path(run_id), plane.runner_token, Runner().body(), want="NOT_FOUND")


async def test_two_runners_race_for_500_runs_and_each_is_claimed_once(plane: Plane) -> None:
    total, slots = 500, 8

    async def submit(count: int) -> list[str]:
        return [await plane.submit() for _ in range(count)]

    batches = await asyncio.gather(*(submit(total // 10) for _ in range(10)))
    submitted = {run_id for batch in batches for run_id in batch}
    won: collections.Counter[str] = collections.Counter()
    epochs: set[int] = set()
    per_runner: collections.Counter[str] = collections.Counter()

    async def slot(runner: Runner) -> None:
        while (run_id := await poll(plane)) is not None:
            headers = {"authorization": f"Bearer {plane.runner_token}"}
            async with plane.http.post(claim_path(run_id), json=runner.body(), headers=headers) as response:
                answer = await response.json()
            assert response.status in (200, 409), answer
            if response.status == 200:
                won[run_id] += 1
                per_runner[runner.runner_id] += 1
                epochs.add(answer["lease"]["epoch"])

    # every slot is a runner of its own, so that a repeated claim by the same runner cannot hide a double one
    await asyncio.gather(*(slot(Runner()) for _ in range(slots)))
    assert set(won) == submitted
    assert set(won.values()) == {1}
    assert epochs == {1}
    assert len(per_runner) > 1


async def test_an_expired_lease_is_taken_back_and_the_run_goes_to_another_runner(plane: Plane) -> None:
    old = await plane.submit_and_claim()
    await expire(plane)
    assert (await plane.view(old.run_id))["status"] == "pending"
    new = await plane.claim(old.run_id)
    assert (old.epoch, new.epoch, new.context["attempt"]) == (1, 2, 2)
    for name, fields in WRITES.items():
        await plane.webhook(old, name, want="LEASE_LOST", **fields)
        if name != "complete":
            await plane.webhook(new, name, **fields)
    await plane.renew(old, want="LEASE_LOST")
    await _release(plane, old, want="LEASE_LOST")
    await plane.finish(new)
    view = await plane.view(old.run_id)
    assert [(step["phase"], step["attempt"], step["ok"]) for step in view["timeline"]] == [
        ("queued", 1, True),
        ("lease_expired", 1, False),
        ("queued", 2, True),
    ]
    assert view["firstAbnormalStep"] == "lease_expired"


WRITES: dict[str, dict[str, Any]] = {
    "events": {"events": [{"type": "a", "sequenceNumber": 0}]},
    "heartbeat": {},
    "telemetry": {"systemLog": "line\n"},
    "checkpoints": {"cliAgentType": "command"},
    "checkpoints/prepare-history": {"hash": "0" * 64, "size": 1},
    "complete": {"exitCode": 0},
}


@pytest.mark.parametrize("name", [*WRITES, "storages/prepare", "storages/commit"])
async def test_every_write_is_fenced(plane: Plane, name: str) -> None:
    """The old attempt's token is refused once the run is with somebody else, and while it waits again."""
    fields = WRITES.get(name) or {"storageName": "work", "storageType": "artifact", "files": []}
    if name == "storages/commit":
        fields["versionId"] = "0" * 64
    old = await plane.submit_and_claim(artifact={"name": "work", "mountPath": "/work"})
    await expire(plane)
    await plane.webhook(old, name, want="LEASE_LOST", **fields)
    new = await plane.claim(old.run_id)
    await plane.webhook(old, name, want="LEASE_LOST", **fields)
    await plane.complete(new, exitCode=1)
    await plane.webhook(new, name, want=200 if name == "complete" else "LEASE_LOST", **fields)


async def test_an_expired_lease_of_a_started_agent_ends_the_run_as_lost(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    await plane.renew(lease, agentStarted=True)
    await expire(plane)
    view = await plane.view(lease.run_id)
    assert (view["status"], view["outcome"]["kind"], view["outcome"]["reason"]) == ("failed", "lost", "lease_expired")
    assert "exitCode" not in view["outcome"] and "isolation" not in view, "nothing is invented"
    await plane.renew(lease, want="LEASE_LOST")


async def test_a_run_that_never_starts_runs_out_of_attempts(plane: Plane) -> None:
    run_id = await plane.submit(maxAttempts=2)
    for _ in range(2):
        await plane.claim(run_id)
        await expire(plane)
    view = await plane.view(run_id)
    assert (view["status"], view["attempts"]) == ("failed", 2)
    assert (view["outcome"]["kind"], view["outcome"]["reason"]) == ("unknown", "attempts_exhausted")


@pytest.mark.parametrize(("started", "kind"), [(False, "cancelled"), (True, "lost")])
async def test_an_expired_lease_of_a_run_to_be_cancelled_cancels_it(plane: Plane, started: bool, kind: str) -> None:
    lease = await plane.submit_and_claim()
    await plane.renew(lease, agentStarted=started)
    await plane.call("POST", f"/api/runs/{lease.run_id}/cancel", plane.user)
    await expire(plane)
    view = await plane.view(lease.run_id)
    assert (view["status"], view["outcome"]["kind"]) == ("cancelled", kind)


async def test_a_late_renewal_is_fine_until_the_lease_is_taken_back(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    plane.handle.context._background[0].cancel()  # no reaper: nobody looks
    plane.clock.advance(10 * TTL_S)
    assert (await plane.renew(lease))["ttlSeconds"] == TTL_S
    plane.clock.advance(TTL_S - 1)
    await plane.events(lease, 0)


async def test_the_reaper_needs_no_request(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    waiting = asyncio.create_task(plane.call("GET", f"/api/runs/{lease.run_id}/events?wait=30", plane.user))
    await plane.renew(lease, agentStarted=True)
    plane.clock.advance(TTL_S + 1)
    assert (await waiting)["complete"] is True


async def test_releasing_queues_again_until_no_attempts_are_left(plane: Plane) -> None:
    run_id = await plane.submit(maxAttempts=2)
    lease = await plane.claim(run_id)
    assert await _release(plane, lease) == {"requeued": True}
    assert await _release(plane, lease) == {"requeued": True}, "a repeated report gets the same answer"
    lease = await plane.claim(run_id)
    assert await _release(plane, lease) == {"requeued": False}
    assert await _release(plane, lease) == {"requeued": False}
    view = await plane.view(run_id)
    assert (view["status"], view["outcome"]["reason"]) == ("failed", "attempts_exhausted")
    assert "no_capacity" in view["outcome"]["detail"]
    assert [step["phase"] for step in view["timeline"]] == ["queued", "boot", "released"] * 2


async def test_a_run_whose_start_was_announced_but_did_not_happen_is_queued_again(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    await plane.renew(lease, agentStarted=True)
    assert await _release(plane, lease) == {"requeued": True}


async def test_releasing_a_run_to_be_cancelled_cancels_it(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    await plane.call("POST", f"/api/runs/{lease.run_id}/cancel", plane.user)
    assert await _release(plane, lease) == {"requeued": False}
    assert (await plane.view(lease.run_id))["status"] == "cancelled"


async def _release(plane: Plane, lease: Claimed, want: int | str = 200) -> Any:
    body = {
        "runnerId": lease.runner.runner_id,
        "epoch": lease.epoch,
        "reason": "no_capacity",
        "timeline": [{"phase": "boot", "startedAtMs": 1}],
    }
    return await plane.call("POST", f"/api/runners/jobs/{lease.run_id}/release", plane.runner_token, body, want=want)


@pytest.mark.parametrize("wrong", ["epoch", "runnerId", "bootId"])
async def test_only_the_holder_renews(plane: Plane, wrong: str) -> None:
    lease = await plane.submit_and_claim()
    body = lease.runner.body(epoch=lease.epoch)
    body[wrong] = 2 if wrong == "epoch" else str(uuid.uuid4())
    path = f"/api/runners/jobs/{lease.run_id}/lease"
    await plane.call("POST", path, plane.runner_token, body, want="LEASE_LOST")


async def test_runners_are_listed_until_they_fall_silent(plane: Plane) -> None:
    ids = [str(uuid.uuid4()) for _ in range(2)]
    for index, runner_id in enumerate(ids):
        body = {"runnerId": runner_id, "runnerName": f"host-{index}", "group": "vm0/default", "runningCount": index}
        await plane.call("POST", "/api/runners/heartbeat", plane.runner_token, body)
        plane.clock.advance(200)
    listed = await plane.call("GET", "/api/runners", plane.user)
    assert [entry["runner"]["runnerName"] for entry in listed["runners"]] == ["host-1"]
    assert listed["runners"][0]["runner"]["runningCount"] == 1


async def test_a_sandbox_token_ends_some_time_after_the_run_should_have(plane: Plane) -> None:
    lease = await plane.submit_and_claim(timeoutSeconds=60)
    for _ in range(50):  # kept alive for long
        plane.clock.advance(28)
        await plane.renew(lease)
    await plane.webhook(lease, "heartbeat")
    for _ in range(85):
        plane.clock.advance(28)
        await plane.renew(lease)
    await plane.webhook(lease, "heartbeat", want="UNAUTHORIZED")
