"""Timelines: per run, attempt and part (before, runner, after) a list of steps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from vm0.contracts import codec
from vm0.contracts.runs import TimelineStep
from vm0.server.db.schema import timelines
from vm0.server.domain.timeline import assemble

_row = sqlite_insert(timelines)
PUT = _row.on_conflict_do_update(index_elements=["run_num", "attempt", "part"], set_={"steps": _row.excluded.steps})


def put(connection: Connection, num: int, attempt: int, part: str, steps: Iterable[TimelineStep]) -> None:
    """Replace one part of an attempt."""
    text = json.dumps([codec.encode(step) for step in steps], separators=(",", ":"))
    connection.execute(PUT, {"run_num": num, "attempt": attempt, "part": part, "steps": text})


def of_runs(connection: Connection, nums: Iterable[int]) -> dict[int, tuple[TimelineStep, ...]]:
    """The whole timeline of each run."""
    parts: dict[int, list[tuple[int, str, tuple[TimelineStep, ...]]]] = defaultdict(list)
    for row in connection.execute(sa.select(timelines).where(timelines.c.run_num.in_(list(nums)))):
        steps = tuple(codec.decode(TimelineStep, step) for step in json.loads(row.steps))
        parts[row.run_num].append((row.attempt, row.part, steps))
    return {num: assemble(found) for num, found in parts.items()}
