"""The lease by a clock that the test moves: when it is renewed, when it is over, and that a late answer is none."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import pytest_asyncio

from vm0.contracts.errors import ErrorCode
from vm0.contracts.runner import LeaseAnswer, LeaseRequest
from vm0.runner.clock import BootClock
from vm0.runner.control_plane import ControlPlane, ControlPlaneUnavailable, LeaseLost, Refused
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.leases import LeaseKeeper, RunnerIdentity

RUN_ID = "11111111-2222-4333-8444-555555555555"
IDENTITY = RunnerIdentity(runner_id=RUN_ID, boot_id=RUN_ID, name="test")
TTL_S = 30.0
AWAY = ControlPlaneUnavailable("away")


class ManualClock:
    """Time passes only in `advance`, which lets everything run that is due on the way."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, future))
        await future

    def jump(self, seconds: float) -> None:
        self._now += seconds

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        await self.settle()
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, due)
            if not future.done():
                future.set_result(None)
            await self.settle()
        self._now = max(self._now, end)


class Server:
    """Answers renewals with what the test put in `answers`, else with yes."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.requests: list[tuple[float, LeaseRequest]] = []
        self.always: Exception | None = None
        self.answers: list[Exception | Callable[[], Any]] = []
        self.cancel = False

    async def renew(self, run_id: str, request: LeaseRequest) -> LeaseAnswer:
        self.requests.append((self.clock.now(), request))
        answer = self.answers.pop(0) if self.answers else self.always
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            await answer()
        return LeaseAnswer(ttl_seconds=TTL_S, cancel_requested=self.cancel)


class Kept:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = Server(self.clock)
        self.interruption = Interruption()
        self.keeper = LeaseKeeper(
            cast(ControlPlane, self.server), IDENTITY, RUN_ID, epoch=2, ttl_s=TTL_S, asked_at=self.clock.now(),
            interruption=self.interruption, clock=self.clock,
        )  # fmt: skip

    def held(self) -> bool:
        return self.keeper.held

    def cause(self) -> StopCause | None:
        return self.interruption.cause


@pytest_asyncio.fixture
async def kept() -> AsyncIterator[Kept]:
    found = Kept()
    task = asyncio.create_task(found.keeper.keep())
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_renewed_every_third_of_its_time(kept: Kept) -> None:
    await kept.clock.advance(95)
    times = [at - 1000 for at, _ in kept.server.requests]
    assert [round(at) for at in times] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert all(request.epoch == 2 and not request.agent_started for _, request in kept.server.requests)
    assert kept.held() and kept.cause() is None


async def test_without_an_answer_it_ends_at_two_thirds(kept: Kept) -> None:
    kept.server.always = AWAY
    await kept.clock.advance(19.9)
    assert kept.held() and kept.cause() is None
    await kept.clock.advance(0.2)
    assert not kept.held()
    assert kept.cause() is StopCause.LEASE_EXPIRED


async def test_a_server_away_for_a_while_changes_nothing(kept: Kept) -> None:
    kept.server.answers = [AWAY] * 8
    await kept.clock.advance(40)
    assert kept.held() and kept.cause() is None


async def test_time_counts_from_when_the_answered_request_was_sent(kept: Kept) -> None:
    """An answer that takes 8 s to arrive promises 20 s from its request on, not from its arrival."""
    kept.server.answers = [lambda: kept.clock.sleep(8)]
    kept.server.always = AWAY
    await kept.clock.advance(29.9)
    assert kept.held()
    await kept.clock.advance(0.2)
    assert kept.cause() is StopCause.LEASE_EXPIRED


async def test_an_answer_after_the_deadline_does_not_revive_it(kept: Kept) -> None:
    kept.server.answers = [lambda: kept.clock.sleep(15)]
    await kept.clock.advance(30)
    assert not kept.held()
    assert kept.cause() is StopCause.LEASE_EXPIRED


async def test_one_dead_connection_does_not_end_it() -> None:
    """By the real clock: the first renewal is never answered, the next one goes out beside it."""

    class Stalling:
        def __init__(self) -> None:
            self.requests = 0

        async def renew(self, run_id: str, request: LeaseRequest) -> LeaseAnswer:
            self.requests += 1
            if self.requests == 1:
                await asyncio.Event().wait()
            return LeaseAnswer(ttl_seconds=1.2)

    server, interruption = Stalling(), Interruption()
    keeper = LeaseKeeper(
        cast(ControlPlane, server), IDENTITY, RUN_ID, epoch=1, ttl_s=1.2, asked_at=BootClock().now(),
        interruption=interruption,
    )  # fmt: skip
    task = asyncio.create_task(keeper.keep())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await interruption.wait()
    assert keeper.held and server.requests >= 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_suspended_host_notices_within_a_second(kept: Kept) -> None:
    """Time jumps; nobody was woken for it."""
    await kept.clock.advance(1)
    assert kept.held()
    kept.clock.jump(3600)
    await kept.clock.advance(1)
    assert not kept.held()
    assert kept.cause() is StopCause.LEASE_EXPIRED


@pytest.mark.parametrize(
    "refusal", [LeaseLost("gone"), Refused("renewal", 404, ErrorCode.NOT_FOUND, ""),
                Refused("renewal", 409, ErrorCode.CONFLICT, "")],
)  # fmt: skip
async def test_the_server_says_that_it_is_lost(kept: Kept, refusal: Exception) -> None:
    kept.server.answers = [refusal]
    await kept.clock.advance(10.1)
    assert not kept.held()
    assert kept.cause() is StopCause.LEASE_LOST
    count = len(kept.server.requests)
    await kept.clock.advance(100)
    assert len(kept.server.requests) == count


@pytest.mark.parametrize(
    "error", [Refused("renewal", 401, ErrorCode.UNAUTHORIZED, ""), ValueError("a bug of ours")]
)  # fmt: skip
async def test_other_errors_are_tried_again_until_the_deadline(kept: Kept, error: Exception) -> None:
    kept.server.answers = [error]
    await kept.clock.advance(12)
    assert kept.held() and len(kept.server.requests) == 2


async def test_a_cancel_is_passed_on_and_the_lease_stays(kept: Kept) -> None:
    kept.server.cancel = True
    await kept.clock.advance(10.1)
    assert kept.cause() is StopCause.CANCEL_REQUESTED and kept.held()


async def test_marking_needs_a_yes(kept: Kept) -> None:
    kept.server.answers = [AWAY, AWAY]
    marking = asyncio.create_task(kept.keeper.mark_agent_started())
    await kept.clock.settle()
    assert not marking.done()
    await kept.clock.advance(5)
    assert marking.done() and marking.exception() is None
    assert [request.agent_started for _, request in kept.server.requests] == [True] * 3
    await kept.clock.advance(10)
    assert kept.server.requests[-1][1].agent_started


@pytest.mark.parametrize("error", [AWAY, LeaseLost("gone")])
async def test_marking_fails_with_the_lease(kept: Kept, error: Exception) -> None:
    kept.server.always = error
    marking = asyncio.create_task(kept.keeper.mark_agent_started())
    await kept.clock.advance(25)
    assert isinstance(marking.exception(), LeaseLost)
    cause = kept.cause()
    assert cause is not None and cause.fenced


async def test_marking_with_an_answer_too_late_fails(kept: Kept) -> None:
    """The renewal in the background is late as well; nothing may start on the strength of an old answer."""
    kept.server.answers = [lambda: kept.clock.sleep(21), lambda: kept.clock.sleep(21)]
    marking = asyncio.create_task(kept.keeper.mark_agent_started())
    await kept.clock.advance(25)
    assert isinstance(marking.exception(), LeaseLost)


def test_a_lost_lease_overrides_a_cancel_but_not_the_reverse() -> None:
    async def check() -> None:
        first = Interruption()
        first.request(StopCause.CANCEL_REQUESTED)
        first.request(StopCause.LEASE_LOST)
        assert await first.wait() is StopCause.LEASE_LOST
        first.request(StopCause.CANCEL_REQUESTED)
        assert first.cause is StopCause.LEASE_LOST
        await first.wait_fenced()

    asyncio.run(check())
