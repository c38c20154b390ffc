"""The guest's loop: the races of descriptors that are closed and reused, and time limits of any length."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from vm0.vsock_guest.loop import READ, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_a_reused_number_does_not_get_the_event_of_its_predecessor(loop: Loop) -> None:
    """Two descriptors are ready; the callback of the one that comes first closes the other and opens a new one, which
    gets its number. The new one is not ready, and waiting for it would stop everything."""
    pipes = [os.pipe(), os.pipe()]
    fresh: list[tuple[int, int]] = []
    seen: list[str] = []

    def first(number: int) -> None:
        seen.append("old")
        for read_end, write_end in pipes:
            loop.unwatch(read_end)
            os.close(write_end)
        other = pipes[1 - number][0]
        os.close(other)
        fresh.append(os.pipe())
        assert other in fresh[0]
        for fd in fresh[0]:
            loop.watch(fd, READ, lambda _events: seen.append("new"))
        loop.later(0.05, loop.stop)
        os.close(pipes[number][0])

    for number, (read_end, write_end) in enumerate(pipes):
        os.write(write_end, b"x")
        loop.watch(read_end, READ, lambda _events, number=number: first(number))  # type: ignore[misc]  # a default
    loop.run()
    assert seen == ["old"]
    for fd in fresh[0]:
        loop.unwatch(fd)
        os.close(fd)


@pytest.mark.parametrize("delay_s", [30 * 86400.0, 1e15, 2.0**64])
def test_a_limit_that_epoll_cannot_count(loop: Loop, delay_s: float) -> None:
    loop.later(delay_s, lambda: pytest.fail("far too early"))
    threading.Timer(0.05, lambda: loop.submit(loop.stop)).start()
    loop.run()


def test_timers_run_in_order_and_cancelled_ones_not_at_all(loop: Loop) -> None:
    seen: list[int] = []
    timers = [loop.later(delay / 100, lambda delay=delay: seen.append(delay)) for delay in (3, 1, 2, 0)]  # type: ignore[misc]
    timers[2].cancel()
    timers[2].cancel()
    loop.later(0.05, loop.stop)
    loop.run()
    assert seen == [0, 1, 3]


def test_calls_of_other_threads_run_in_the_loop(loop: Loop) -> None:
    seen: list[int] = []

    def call(number: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append(number)
        if len(seen) == 400:
            loop.stop()

    def submit_many(base: int) -> None:
        for number in range(100):
            loop.submit(lambda: call(base + number))  # noqa: B023  # order within a thread is not asked here

    threads = [threading.Thread(target=submit_many, args=(base,)) for base in range(4)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    loop.later(10, loop.stop)
    loop.run()
    for thread in threads:
        thread.join()
    assert len(seen) == 400 and time.monotonic() - started < 9


def test_unwatch_is_idempotent_and_watch_replaces(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    seen: list[str] = []
    loop.watch(read_end, 0, lambda _events: seen.append("first"))

    def second(_events: int) -> None:
        seen.append(os.read(read_end, 1).decode())

    loop.watch(read_end, READ, second)
    loop.later(0.05, loop.stop)
    os.write(write_end, b"x")
    loop.run()
    loop.unwatch(read_end)
    loop.unwatch(read_end)
    os.close(read_end)
    os.close(write_end)
    assert seen == ["x"]
