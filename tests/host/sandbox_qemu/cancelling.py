"""Cancels a coroutine at a wait of one's choice, not after a time: so each place where it can happen is reached."""

from __future__ import annotations

import asyncio
import enum
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Moment(enum.Enum):
    """When, in a wait. The second is the one that is missed most: the result is there and will not be delivered."""

    BEGUN = "begun"  #: what it waits for is under way
    DONE = "done"  #: what it waits for is done in the same turn of the loop
    TWICE = "twice"  #: as BEGUN, and once more at the next wait, which is in its clean-up


async def cancelled_at(number: int, moment: Moment, work: Coroutine[Any, Any, object]) -> bool:
    """Cancel `work` at its wait of this number, from 0; whether it came so far. Its own errors are raised."""
    loop = asyncio.get_running_loop()
    waits = 0

    def on_wait(waited_for: object) -> None:
        nonlocal waits
        if waits == number and moment is Moment.DONE and isinstance(waited_for, asyncio.Future):
            waited_for.add_done_callback(lambda _: task.cancel())  # called before the task's own, which is added next
        elif waits == number or (moment is Moment.TWICE and waits == number + 1):
            loop.call_soon(task.cancel)
        waits += 1

    task = asyncio.create_task(_watched(work, on_wait), name="to be cancelled")
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
    return waits > number


class AtWait:
    """Begins `act` in a task of its own, `acted`, when some work comes to its wait of this number, from 0."""

    def __init__(self, number: int, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._number, self._act = number, act
        self._waits = 0
        self.acted: asyncio.Task[None] | None = None

    async def result(self, work: Coroutine[Any, Any, object]) -> object:
        """Of the work; its exception if it fails."""
        task = asyncio.create_task(_watched(work, self._on_wait))
        return (await asyncio.gather(task, return_exceptions=True))[0]

    def _on_wait(self, waited_for: object) -> None:
        if self._waits == self._number:
            self.acted = asyncio.create_task(self._act(), name="at a wait")
        self._waits += 1


@types.coroutine
def _watched(work: Coroutine[Any, Any, object], on_wait: Callable[[object], None]) -> Generator[Any, Any, object]:
    resume: Callable[[], object] = lambda: work.send(None)  # noqa: E731
    while True:
        try:
            waited_for = resume()
        except StopIteration as stop:
            return stop.value
        on_wait(waited_for)
        try:
            yield waited_for
            resume = lambda: work.send(None)  # noqa: E731
        except BaseException as exc:
            resume = _thrower(work, exc)


def _thrower(work: Coroutine[Any, Any, object], exc: BaseException) -> Callable[[], object]:
    return lambda: work.throw(exc)
