"""Events of runs, stored as the JSON text they came in, once per sequence number."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from vm0.contracts.codec import JsonObject
from vm0.server.db.schema import events, runs
from vm0.server.domain.events import contiguous_after

MAX_PAGE_BYTES = 8 * 1024 * 1024  # a page ends after the event that reaches this
COUNTERS = sa.select(runs.c.events_received, runs.c.events_contiguous, runs.c.events_highest).where(
    runs.c.num == sa.bindparam("num")
)
MOVE_COUNTERS = sa.update(runs).where(runs.c.num == sa.bindparam("num_of_run"))
INSERT = "INSERT OR IGNORE INTO events (run_num, seq, event) VALUES (?, ?, ?)"


def as_rows(batch: Sequence[JsonObject]) -> list[tuple[int, str]]:
    """(sequence number, text) of each event; called outside the writer, which has better things to do."""
    return [(event["sequenceNumber"], json.dumps(event, separators=(",", ":"), allow_nan=False)) for event in batch]


def append(connection: Connection, num: int, rows: Sequence[tuple[int, str]]) -> None:
    """Store what is not stored yet and move the run's counters."""
    counters = connection.execute(COUNTERS, {"num": num}).one()
    cursor = connection.exec_driver_sql(INSERT, [(num, seq, text) for seq, text in rows])
    contiguous = counters.events_contiguous
    numbers = sorted(seq for seq, _ in rows)
    if counters.events_highest < contiguous and numbers[0] == contiguous:  # in order, as nearly always
        contiguous = contiguous_after(contiguous, dict.fromkeys(numbers))
    elif numbers[-1] >= contiguous:
        contiguous = contiguous_after(contiguous, _stored_from(connection, num, contiguous))
    moved = {
        "num_of_run": num,
        "events_received": counters.events_received + cursor.rowcount,
        "events_contiguous": contiguous,
        "events_highest": max(counters.events_highest, numbers[-1]),
    }
    connection.execute(MOVE_COUNTERS, moved)


def _stored_from(connection: Connection, num: int, first: int) -> list[int]:
    query = sa.select(events.c.seq).where(events.c.run_num == num, events.c.seq >= first).order_by(events.c.seq)
    return list(connection.execute(query).scalars())


def page(connection: Connection, num: int, *, after: int, before: int, limit: int) -> tuple[list[str], int]:
    """The texts of events `after` < number < `before`, and the number of the last one (or `after`)."""
    query = (
        sa.select(events.c.seq, events.c.event)
        .where(events.c.run_num == num, events.c.seq > after, events.c.seq < before)
        .order_by(events.c.seq)
        .limit(limit)
    )
    texts: list[str] = []
    size = 0
    with connection.execution_options(yield_per=100).execute(query) as result:
        for seq, text in result:
            texts.append(text)
            after = seq
            size += len(text)
            if size >= MAX_PAGE_BYTES:
                break
    return texts, after
