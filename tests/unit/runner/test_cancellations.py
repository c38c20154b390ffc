"""The listener for cancellations: a hint that arrives once, for the run it is meant for, and survives a bad server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from vm0.contracts.runner import CancellationsAnswer, CancellationsRequest
from vm0.runner import cancellations
from vm0.runner.cancellations import CancellationListener
from vm0.runner.control_plane import ControlPlaneUnavailable
from vm0.runner.interruption import Interruption, StopCause

A, B = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"


class Server:
    """Answers the one call as the real route does, from a set of cancelled runs."""

    def __init__(self) -> None:
        self.requests: list[CancellationsRequest] = []
        self.failures = 0
        self._cancelled: set[str] = set()
        self._changed = asyncio.Event()

    def cancel(self, run_id: str) -> None:
        self._cancelled.add(run_id)
        self._changed.set()

    async def cancellations(self, request: CancellationsRequest) -> CancellationsAnswer:
        self.requests.append(request)
        if self.failures:
            self.failures -= 1
            raise ControlPlaneUnavailable("down")
        while not (new := tuple(sorted(self._cancelled - set(request.known)))):
            self._changed.clear()
            await self._changed.wait()
        return CancellationsAnswer(run_ids=new)


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def listener(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CancellationListener]:
    monkeypatch.setattr(cancellations, "RETRY_MIN_S", 0.01)
    listener = CancellationListener(server, "cccccccc-0000-4000-8000-000000000000")  # type: ignore[arg-type]
    task = asyncio.create_task(listener.run())
    yield listener
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_interrupts_the_run_that_is_meant_and_asks_no_more_about_it(
    server: Server, listener: CancellationListener
) -> None:
    mine, other = Interruption(), Interruption()
    listener.watch(A, mine)
    listener.watch(B, other)
    server.cancel(A)
    async with asyncio.timeout(5):
        assert await mine.wait() is StopCause.CANCEL_REQUESTED
        while server.requests[-1].known != (A,):
            await asyncio.sleep(0)
    assert other.cause is None


async def test_it_asks_nothing_while_nothing_runs(server: Server, listener: CancellationListener) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert server.requests == []


async def test_a_failing_server_is_asked_again(server: Server, listener: CancellationListener) -> None:
    server.failures = 3
    interruption = Interruption()
    listener.watch(A, interruption)
    server.cancel(A)
    async with asyncio.timeout(5):
        await interruption.wait()
    assert len(server.requests) >= 4


async def test_the_next_attempt_of_a_cancelled_run_is_told_as_well(
    server: Server, listener: CancellationListener
) -> None:
    first, second = Interruption(), Interruption()
    listener.watch(A, first)
    listener.watch(A, second)
    listener.unwatch(A, first)
    server.cancel(A)
    async with asyncio.timeout(5):
        await second.wait()
    assert first.cause is None
