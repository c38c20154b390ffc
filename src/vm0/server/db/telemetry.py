"""Logs and measurements of runs, appended within a limit per run; what is over it is counted, not kept."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from vm0.contracts.codec import JsonObject
from vm0.contracts.runs import LogsView
from vm0.server.db.schema import runs, system_logs, telemetry_counts, telemetry_records

STREAMS = ("metrics", "sandbox_operations", "network_logs")
FULL_MARKER = "\n[vm0] the system log is full: later lines are not kept\n"


def append_system_log(connection: Connection, num: int, text: str, limit_bytes: int) -> None:
    """Keep `text`, up to `limit_bytes` per run in all; the marker says where the rest is missing."""
    used, full = connection.execute(
        sa.select(runs.c.system_log_bytes, runs.c.system_log_full).where(runs.c.num == num)
    ).one()
    if full or not text:
        return
    data = text.encode()
    full = used + len(data) > limit_bytes
    if full:
        text = data[: limit_bytes - used].decode("utf-8", "ignore") + FULL_MARKER
    connection.execute(sa.insert(system_logs).values(run_num=num, text=text))
    connection.execute(
        sa.update(runs)
        .where(runs.c.num == num)
        .values(system_log_bytes=min(used + len(data), limit_bytes), system_log_full=full)
    )


def append_records(connection: Connection, num: int, stream: str, records: Sequence[JsonObject], limit: int) -> None:
    """Keep the first `limit` records of a stream of a run."""
    if not records:
        return
    stored = connection.execute(
        sa.select(telemetry_counts.c.stored).where(
            telemetry_counts.c.run_num == num, telemetry_counts.c.stream == stream
        )
    ).scalar()
    kept = records[: max(0, limit - (stored or 0))]
    if kept:
        rows = [{"run_num": num, "stream": stream, "record": json.dumps(r, separators=(",", ":"))} for r in kept]
        connection.execute(sa.insert(telemetry_records), rows)
    counts = sqlite_insert(telemetry_counts).values(
        run_num=num, stream=stream, stored=len(kept), dropped=len(records) - len(kept)
    )
    connection.execute(
        counts.on_conflict_do_update(
            index_elements=["run_num", "stream"],
            set_={
                "stored": telemetry_counts.c.stored + counts.excluded.stored,
                "dropped": telemetry_counts.c.dropped + counts.excluded.dropped,
            },
        )
    )


def logs(connection: Connection, num: int) -> LogsView:
    """All that is kept of a run; bounded by the limits above."""
    lines = connection.execute(
        sa.select(system_logs.c.text).where(system_logs.c.run_num == num).order_by(system_logs.c.id)
    ).scalars()
    system_log = "".join(lines)
    found: dict[str, list[JsonObject]] = {stream: [] for stream in STREAMS}
    records = sa.select(telemetry_records.c.stream, telemetry_records.c.record)
    query = records.where(telemetry_records.c.run_num == num).order_by(telemetry_records.c.stream, "id")
    for stream, record in connection.execute(query):
        found[stream].append(json.loads(record))
    return LogsView(system_log=system_log, **{stream: tuple(items) for stream, items in found.items()})
