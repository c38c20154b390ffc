"""Work is awaited to its end, however often the caller is cancelled, and what nobody will have is discarded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from vm0.microvm.finishing import in_thread, to_the_end


async def test_result_and_failure_are_those_of_the_work() -> None:
    assert await to_the_end(asyncio.sleep(0, "done")) == "done"

    async def fails() -> None:
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        await to_the_end(fails())
    assert await in_thread(threading.get_ident, "test") != threading.get_ident()


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_caller_waits_and_discards(times: int) -> None:
    go = asyncio.Event()
    discarded: list[str] = []

    async def work() -> str:
        await go.wait()
        return "made"

    async def discard(result: str) -> None:
        await asyncio.sleep(0)
        discarded.append(result)

    caller = asyncio.create_task(to_the_end(work(), discard=discard))
    for _ in range(times):
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert discarded == ["made"]


async def test_a_cancellation_that_comes_with_the_result_discards_it() -> None:
    work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    discarded: list[str] = []
    caller = asyncio.create_task(to_the_end(work, discard=discarded.append))
    await asyncio.sleep(0)
    work.set_result("made")
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert discarded == ["made"]


async def test_a_discard_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def discard(result: str) -> None:
        raise ValueError(f"cannot discard {result}")

    caller = asyncio.create_task(to_the_end(asyncio.sleep(0, "made"), discard=discard))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert "cannot discard made" in caplog.text


async def test_work_that_fails_for_a_cancelled_caller() -> None:
    go = threading.Event()

    def fails() -> None:
        go.wait()
        raise ValueError("nobody hears of it")

    caller = asyncio.create_task(in_thread(fails, "test"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
