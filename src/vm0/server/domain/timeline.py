"""The timeline of a run: the server's steps (`queued`, `lease_expired`, ...) around what each attempt's runner did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vm0.contracts.runs import TimelineStep

BEFORE, RUNNER, AFTER = "before", "runner", "after"  # who wrote a part of an attempt, in the order shown
ORDER = {BEFORE: 0, RUNNER: 1, AFTER: 2}


def assemble(parts: Iterable[tuple[int, str, tuple[TimelineStep, ...]]]) -> tuple[TimelineStep, ...]:
    """One list from (attempt, part, steps), by attempt; clocks of different hosts are never compared."""
    ordered = sorted(parts, key=lambda part: (part[0], ORDER[part[1]]))
    return tuple(step for _, _, steps in ordered for step in steps)


def of_attempt(attempt: int, steps: Iterable[TimelineStep]) -> tuple[TimelineStep, ...]:
    """Steps as reported, with the attempt they really belong to: the lease knows it, a report may be mistaken."""
    return tuple(dataclasses.replace(step, attempt=attempt) for step in steps)


def first_abnormal(steps: Iterable[TimelineStep]) -> str | None:
    return next((step.phase for step in steps if not step.ok), None)


def queued(attempt: int, since_ms: int, now_ms: int) -> TimelineStep:
    waited = float(max(0, now_ms - since_ms))
    return TimelineStep(phase="queued", started_at_ms=since_ms, duration_ms=waited, attempt=attempt)
