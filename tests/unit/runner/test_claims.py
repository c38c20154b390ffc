"""Discovery against a control plane over HTTP: capacity first, lost answers, and a stop at every moment."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.support.fake_control_plane import RUNNER_TOKEN, FakeControlPlane
from vm0.contracts.runs import Isolation, RunStatus
from vm0.runner.claims import Claim, Discovery, Slots
from vm0.runner.config import Secret
from vm0.runner.control_plane import HttpControlPlane
from vm0.runner.leases import RunnerIdentity


class Claims:
    """A discovery whose claimed runs are kept; slots are given back by the test."""

    def __init__(self, client: HttpControlPlane, slots: int, poll_wait_s: float) -> None:
        self.slots = Slots(slots)
        self.claimed: asyncio.Queue[Claim] = asyncio.Queue()
        self.discovery = Discovery(
            client,
            RunnerIdentity(runner_id=str(uuid.uuid4()), boot_id=str(uuid.uuid4()), name="test"),
            group="vm0/default",
            isolation=Isolation.PROCESS,
            slots=self.slots,
            start=self.claimed.put_nowait,
            retry_min_s=0.01,
            retry_max_s=0.05,
            poll_wait_s=poll_wait_s,
        )

    async def next(self) -> Claim:
        async with asyncio.timeout(10):
            return await self.claimed.get()


@contextlib.asynccontextmanager
async def discovering(plane: FakeControlPlane, slots: int = 1, poll_wait_s: float = 2.0) -> AsyncIterator[Claims]:
    async with HttpControlPlane(plane.url, Secret(RUNNER_TOKEN)) as client:
        claims = Claims(client, slots, poll_wait_s)
        task = asyncio.create_task(claims.discovery.run())
        try:
            yield claims
        finally:
            claims.discovery.stop()
            async with asyncio.timeout(10):
                await task


async def test_each_run_is_claimed_once(plane: FakeControlPlane) -> None:
    runs = [plane.add_run() for _ in range(20)]
    async with discovering(plane, slots=20) as claims:
        found = {(await claims.next()).context.run_id for _ in runs}
    assert found == {run.run_id for run in runs}
    assert all(len(run.claims) == 1 for run in runs)


async def test_a_run_that_comes_later_ends_the_long_poll(plane: FakeControlPlane) -> None:
    async with discovering(plane, poll_wait_s=30.0) as claims:
        await plane.until(lambda: "poll" in plane.calls)
        run = plane.add_run()
        await plane.announce()
        assert (await claims.next()).context.run_id == run.run_id


async def test_nothing_is_claimed_without_capacity(plane: FakeControlPlane) -> None:
    runs = [plane.add_run() for _ in range(3)]
    async with discovering(plane, slots=2) as claims:
        await claims.next()
        await claims.next()
        calls = list(plane.calls)
        for _ in range(100):
            await asyncio.sleep(0)
        assert plane.calls == calls and calls.count("claim") == 2  # not even a poll
        assert [run.state.status for run in runs].count(RunStatus.PENDING) == 1
        claims.slots.release()
        await claims.next()


@pytest.mark.parametrize("faults", [["lost"], ["lost"] * 4, ["500", "lost", "garbage"], ["refuse:UNAVAILABLE"]])
async def test_a_claim_without_an_answer_is_repeated(plane: FakeControlPlane, faults: list[str]) -> None:
    run = plane.add_run()
    plane.faults["claim"] = list(faults)
    async with discovering(plane) as claims:
        claim = await claims.next()
    assert claim.context.run_id == run.run_id
    assert run.state.epoch == 1, "the repeated claim got the same lease"
    assert len({(request.runner_id, request.boot_id) for request in run.claims}) == 1


async def test_somebody_else_was_faster(plane: FakeControlPlane) -> None:
    first, second = plane.add_run(), plane.add_run()
    plane.faults["claim"] = ["refuse:CONFLICT", "refuse:NOT_FOUND"]
    async with discovering(plane, slots=2) as claims:
        found = {(await claims.next()).context.run_id, (await claims.next()).context.run_id}
    assert found == {first.run_id, second.run_id}
    assert claims.slots._free._value == 0, "a claim that failed gave its slot back"


async def test_errors_of_the_poll_are_survived(plane: FakeControlPlane) -> None:
    plane.faults["poll"] = ["500", "lost", "garbage", "refuse:UNAUTHORIZED", "refuse:FORBIDDEN", "500"]
    plane.add_run()
    async with discovering(plane) as claims:
        await claims.next()
    assert plane.calls.count("poll") >= 7


async def test_a_stop_ends_a_long_poll_at_once(plane: FakeControlPlane) -> None:
    async with discovering(plane, poll_wait_s=30.0) as claims:
        await plane.until(lambda: "poll" in plane.calls)
        begun = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - begun < 3
    assert claims.slots._free._value == 1


async def test_a_claim_under_way_is_finished_at_a_stop(plane: FakeControlPlane) -> None:
    """Giving it up would leave a lease behind that nobody keeps."""
    run = plane.add_run()
    plane.faults["claim"] = ["slow:0.3"]
    async with discovering(plane) as claims:
        await plane.until(lambda: "claim" in plane.calls)
        claims.discovery.stop()
        assert (await claims.next()).context.run_id == run.run_id


async def test_a_host_where_nothing_starts_slows_down(plane: FakeControlPlane) -> None:
    for _ in range(3):
        plane.add_run()
    async with discovering(plane) as claims:
        loop = asyncio.get_running_loop()
        await claims.next()
        for _ in range(40):
            claims.discovery.note_start(False)  # long since at the largest step: 0.025 to 0.05 s
        begun = loop.time()
        claims.slots.release()
        await claims.next()
        assert loop.time() - begun >= 0.025
