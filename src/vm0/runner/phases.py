"""The phases of a run: each has a name, a time limit and a line in the timeline, and ends when the run must stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from vm0.contracts.runs import TimelineStep
from vm0.runner.clock import wall_ms
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.redaction import Redactor

log = logging.getLogger(__name__)

MAX_STEPS = 256
UNWIND_LIMIT_S = 15.0  # how long cancelled work may take to undo itself

T = TypeVar("T")


class PhaseFailed(Exception):
    """a phase failed or took too long"""

    def __init__(self, phase: str, detail: str) -> None:
        super().__init__(f"{phase}: {detail}")
        self.phase, self.detail = phase, detail


class Interrupted(Exception):
    """the run has to stop"""

    def __init__(self, phase: str, cause: StopCause) -> None:
        super().__init__(f"{phase}: {cause.value}")
        self.phase, self.cause = phase, cause


class Timeline:
    """What was done when, in order. `on_change` is told the current phase."""

    def __init__(
        self, attempt: int, redact: Redactor | None = None, on_change: Callable[[str], None] | None = None
    ) -> None:
        self._attempt = max(1, attempt)
        self._redact = redact or Redactor()
        self._on_change = on_change or (lambda _: None)
        self._steps: list[TimelineStep] = []

    def steps(self) -> tuple[TimelineStep, ...]:
        return tuple(self._steps)

    @contextlib.contextmanager
    def step(self, phase: str) -> Iterator[None]:
        """A step that is not ok when its body raises; the exception goes on."""
        if len(self._steps) >= MAX_STEPS:
            yield
            return
        begun = time.monotonic()
        index = len(self._steps)
        self._steps.append(TimelineStep(phase=phase, started_at_ms=wall_ms(), attempt=self._attempt))
        self._on_change(phase)
        ok, detail = True, None
        try:
            yield
        except BaseException as exc:
            text = exc.detail if isinstance(exc, PhaseFailed) else str(exc)
            ok, detail = False, self._redact(text or type(exc).__name__)
            raise
        finally:
            duration_ms = round((time.monotonic() - begun) * 1000, 3)
            self._steps[index] = dataclasses.replace(self._steps[index], duration_ms=duration_ms, ok=ok, detail=detail)

    def note(self, phase: str, detail: str) -> None:
        """Mark the last step of this phase as not ok, after it ended."""
        for index in reversed(range(len(self._steps))):
            if self._steps[index].phase == phase:
                step = self._steps[index]
                self._steps[index] = dataclasses.replace(step, ok=False, detail=self._redact(detail))
                return


class Phases:
    """Runs the phases of one run."""

    def __init__(self, timeline: Timeline, interruption: Interruption) -> None:
        self._timeline, self._interruption = timeline, interruption

    async def run(self, phase: str, limit_s: float, work: Coroutine[Any, Any, T], *, interruptible: bool = True) -> T:
        """The result of `work`, or PhaseFailed, or Interrupted. Work that is given up is cancelled and awaited."""
        if interruptible and self._interruption.cause is not None:
            work.close()
            raise Interrupted(phase, self._interruption.cause)
        task = asyncio.create_task(work, name=f"phase-{phase}")
        stop = asyncio.create_task(self._interruption.wait(), name=f"phase-{phase}-stop")
        try:
            with self._timeline.step(phase):
                await asyncio.wait(
                    {task, stop} if interruptible else {task},
                    timeout=limit_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if task.done():
                    return self._result(phase, task)
                if stop.done() and interruptible:
                    raise Interrupted(phase, stop.result())
                raise PhaseFailed(phase, f"not done within {limit_s:g} s")
        finally:
            await unwind(task, stop)

    def _result(self, phase: str, task: asyncio.Task[T]) -> T:
        if task.cancelled():
            raise PhaseFailed(phase, "was cancelled from inside")
        exc = task.exception()
        if exc is None:
            return task.result()
        if self._interruption.cause is not None and self._interruption.cause.fenced:
            raise Interrupted(phase, self._interruption.cause) from exc
        if isinstance(exc, Exception):
            raise PhaseFailed(phase, str(exc) or type(exc).__name__) from exc
        raise exc


async def unwind(*tasks: asyncio.Task[Any]) -> None:
    """Cancel and wait for all of them, within a limit; what they raise is of no interest any more."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        _, late = await asyncio.wait(pending, timeout=UNWIND_LIMIT_S)
        for task in late:
            log.error("task %s does not end", task.get_name(), extra={"action": "task_stuck"})
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # retrieved: no warning at its end
