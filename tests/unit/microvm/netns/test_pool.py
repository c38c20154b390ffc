"""What the pool decides: who gets which namespace, what is made when, what a failure or a cancellation does.

The host is a fake that makes nothing, at the pool's own seam; tests/host/netns has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import threading
from collections.abc import AsyncIterator

import pytest

from vm0.microvm.netns import Namespace, NamespaceError, NamespacePool
from vm0.microvm.netns.plan import NAMESPACES, Slot

POOL = 7


class FakeHost:
    """Counts, and does what it is told: `gate` holds creations back, `failures` are raised by the next ones."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.entry = threading.Event()
        self.entry.set()
        self.failures: list[Exception] = []
        self.removal_failures: list[Exception] = []
        self.existing: set[int] = set()
        self.order: list[int] = []
        self.busy = self.most_busy = 0
        self.opened = self.closed = 0

    def open(self) -> int:
        self.entry.wait()
        self.opened += 1
        return POOL

    def create(self, number: int) -> Namespace:
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        self.gate.wait()
        with self.lock:
            self.busy -= 1
            if self.failures:
                raise self.failures.pop(0)
            assert number not in self.existing
            self.existing.add(number)
            self.order.append(number)
        slot = Slot(POOL, number)
        return Namespace(slot, pathlib.Path("/nowhere") / slot.name)

    def remove(self, number: int) -> None:
        with self.lock:
            if self.removal_failures:
                raise self.removal_failures.pop(0)
            self.existing.remove(number)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@contextlib.asynccontextmanager
async def opened(host: FakeHost, *, spare: int, parallel: int = 4) -> AsyncIterator[NamespacePool]:
    """The pool; at the end nothing exists any more."""
    async with NamespacePool(host=host, spare=spare, parallel=parallel) as pool:
        yield pool
        host.gate.set()
    assert (host.existing, host.opened, host.closed) == (set(), 1, 1)


async def until_ready(pool: NamespacePool, count: int) -> None:
    while pool.ready != count:
        await asyncio.sleep(0.001)


async def until_busy(host: FakeHost, count: int) -> None:
    while host.busy != count:
        await asyncio.sleep(0.001)


async def test_spare_ones_are_made_unasked_and_replaced(host: FakeHost) -> None:
    async with opened(host, spare=3) as pool:
        await until_ready(pool, 3)
        assert {(await pool.acquire()).slot for _ in range(3)} == {Slot(POOL, number) for number in range(3)}
        await until_ready(pool, 3)
        assert len(host.existing) == 6


async def test_a_ready_one_is_handed_over_without_waiting(host: FakeHost) -> None:
    async with opened(host, spare=1) as pool:
        await until_ready(pool, 1)
        coroutine = pool.acquire()
        with pytest.raises(StopIteration) as caught:
            coroutine.send(None)  # it never yields to the loop
        assert caught.value.value.name == "vm0-ns-07-00"


async def test_without_spare_ones_each_is_made_on_demand(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        namespaces = await asyncio.gather(*(pool.acquire() for _ in range(5)))
        assert len({namespace.name for namespace in namespaces}) == 5
        assert pool.ready == 0
        assert len(host.existing) == 5


async def test_who_waits_longest_gets_the_first_that_is_done(host: FakeHost) -> None:
    async with opened(host, spare=2, parallel=1) as pool:
        namespaces = await asyncio.gather(*(pool.acquire() for _ in range(4)))
        assert [namespace.slot.number for namespace in namespaces] == host.order[:4]


async def test_creations_are_bounded(host: FakeHost) -> None:
    async with opened(host, spare=4, parallel=3) as pool:
        host.gate.clear()
        asking = [asyncio.create_task(pool.acquire()) for _ in range(20)]
        await until_busy(host, 3)
        host.gate.set()
        await asyncio.gather(*asking)
    assert host.most_busy == 3


async def test_a_released_one_is_removed_and_its_number_rests(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        first = await pool.acquire()
        await pool.release(first)
        await pool.release(first)  # idempotent
        assert host.existing == set()
        assert (await pool.acquire()).slot.number == 1


async def test_every_number_is_used_before_the_first_comes_back(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        for number in [*range(NAMESPACES), 0]:
            namespace = await pool.acquire()
            assert namespace.slot.number == number
            await pool.release(namespace)


async def test_a_stale_namespace_releases_nobody_elses(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        first = await pool.acquire()
        await pool.release(first)
        for _ in range(NAMESPACES - 1):
            await pool.release(await pool.acquire())
        second = await pool.acquire()
        assert second.slot == first.slot
        await pool.release(first)
        assert host.existing == {0}


async def test_the_pool_is_exhausted_with_a_hint_and_recovers(host: FakeHost) -> None:
    async with opened(host, spare=2, parallel=64) as pool:
        taken = await asyncio.gather(*(pool.acquire() for _ in range(NAMESPACES)))
        with pytest.raises(NamespaceError, match="all 256 network namespaces of pool 07 are in use") as caught:
            await pool.acquire()
        assert "another runner" in caught.value.hint
        await pool.release(taken[100])
        assert (await pool.acquire()).slot == taken[100].slot


async def test_of_many_that_ask_at_once_only_those_too_many_fail(host: FakeHost) -> None:
    async with opened(host, spare=0, parallel=64) as pool:
        results = await asyncio.gather(*(pool.acquire() for _ in range(NAMESPACES + 3)), return_exceptions=True)
        assert sum(isinstance(result, NamespaceError) for result in results) == 3
        assert len(host.existing) == NAMESPACES


async def test_a_failure_in_the_background_is_logged_and_acquire_tries_itself(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.failures = [NamespaceError("no memory"), NamespaceError("still none")]
    with caplog.at_level(logging.WARNING):
        async with opened(host, spare=2) as pool:
            while len(caplog.records) < 2:
                await asyncio.sleep(0.001)
            assert pool.ready == 0, "a broken host is not kept busy"
            assert (await pool.acquire()).slot.pool == POOL
            await until_ready(pool, 2)
    assert [record.message for record in caplog.records] == ["no memory", "still none"]


async def test_who_waits_for_a_creation_of_the_background_survives_its_failure(host: FakeHost) -> None:
    host.gate.clear()
    host.failures = [NamespaceError("once")]
    async with opened(host, spare=1, parallel=1) as pool:
        await until_busy(host, 1)
        asking = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        host.gate.set()
        assert (await asking).slot.number == 1


async def test_the_failure_on_demand_is_raised_with_its_hint(host: FakeHost) -> None:
    host.failures = [NamespaceError("no memory", hint="buy some")]
    async with opened(host, spare=0) as pool:
        with pytest.raises(NamespaceError, match="no memory") as caught:
            await pool.acquire()
        assert caught.value.hint == "buy some"
        await pool.acquire()


async def test_a_bug_reaches_who_waits(host: FakeHost) -> None:
    host.failures = [KeyError("IFLA_WHAT")]
    async with opened(host, spare=0) as pool:
        with pytest.raises(NamespaceError, match="IFLA_WHAT") as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, KeyError)


async def test_a_cancelled_acquire_loses_no_namespace(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        host.gate.clear()
        asking = asyncio.create_task(pool.acquire())
        await until_busy(host, 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        host.gate.set()
        await until_ready(pool, 1)
        assert (await pool.acquire()).slot.number == 0


async def test_a_cancellation_that_meets_the_result_loses_no_namespace(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(host, spare=0) as pool:
        asking = asyncio.create_task(pool.acquire())
        give = pool._offer

        def give_and_cancel(namespace: Namespace) -> None:
            give(namespace)
            asking.cancel()  # the result is set, the task has not run since
            monkeypatch.undo()

        monkeypatch.setattr(pool, "_offer", give_and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert pool.ready == 1
        assert host.existing == {0}


async def test_cancelled_ones_do_not_stand_in_the_line(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        host.gate.clear()
        asking = [asyncio.create_task(pool.acquire()) for _ in range(4)]
        await until_busy(host, 4)
        for task in asking[:3]:
            task.cancel()
        await asyncio.wait(asking[:3])
        host.gate.set()
        await asking[3]
        await until_ready(pool, 3)


async def test_a_release_that_is_cancelled_goes_on(host: FakeHost) -> None:
    async with opened(host, spare=0, parallel=1) as pool:
        namespace = await pool.acquire()
        releasing = asyncio.create_task(pool.release(namespace))
        await asyncio.sleep(0)
        releasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        while host.existing:
            await asyncio.sleep(0.001)


async def test_what_cannot_be_removed_is_reported_and_its_number_not_used_again(host: FakeHost) -> None:
    async with opened(host, spare=0) as pool:
        namespace = await pool.acquire()
        host.removal_failures = [NamespaceError("it is stuck")]
        with pytest.raises(NamespaceError, match="stuck"):
            await pool.release(namespace)
        numbers = set()
        for _ in range(NAMESPACES):
            another = await pool.acquire()
            numbers.add(another.slot.number)
            await pool.release(another)
        assert namespace.slot.number not in numbers
        host.existing.discard(namespace.slot.number)


async def test_leaving_removes_all_and_tells_who_waits(host: FakeHost) -> None:
    pool = await NamespacePool(host=host, spare=0).__aenter__()
    await pool.acquire()
    host.gate.clear()
    asking = asyncio.create_task(pool.acquire())
    await until_busy(host, 1)
    leaving = asyncio.create_task(pool.__aexit__())
    with pytest.raises(NamespaceError, match="closed"):
        await asking
    host.gate.set()
    await leaving
    assert host.existing == set()
    assert host.closed == 1


async def test_leaving_reports_what_cannot_be_removed_after_all_the_rest(host: FakeHost) -> None:
    with pytest.raises(NamespaceError, match="stuck"):
        async with NamespacePool(host=host, spare=0) as pool:
            for _ in range(3):
                await pool.acquire()
            host.removal_failures = [NamespaceError("it is stuck")]
    assert len(host.existing) == 1
    assert host.closed == 1


async def test_outside_of_its_block_the_pool_gives_nothing(host: FakeHost) -> None:
    pool = NamespacePool(host=host)
    with pytest.raises(NamespaceError, match="not open"):
        await pool.acquire()
    async with pool:
        pass
    with pytest.raises(NamespaceError, match="not open"):
        await pool.acquire()


async def test_a_cancelled_start_holds_nothing(host: FakeHost) -> None:
    host.entry.clear()
    entering = asyncio.create_task(NamespacePool(host=host).__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    await asyncio.sleep(0)
    host.entry.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert (host.opened, host.closed) == (1, 1)


async def test_a_cancelled_end_ends_first(host: FakeHost) -> None:
    pool = await NamespacePool(host=host, spare=2).__aenter__()
    await until_ready(pool, 2)
    leaving = asyncio.create_task(pool.__aexit__())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (host.existing, host.closed) == (set(), 1)


async def test_a_thousand_cycles_leave_nothing(host: FakeHost) -> None:
    async with opened(host, spare=4) as pool:

        async def cycle() -> None:
            for _ in range(100):
                await pool.release(await pool.acquire())

        await asyncio.gather(*(cycle() for _ in range(10)))
        await until_ready(pool, 4)
        assert len(host.existing) == 4
