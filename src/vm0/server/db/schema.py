"""The tables. `migrations/` must lead to exactly these; a test compares the two.

A run has a number beside its id: rows that belong to a run carry the number, which is small, and queue order is its
order. Times are Unix milliseconds, except lease expiries, which are on the server's monotonic clock.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("num", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("group_name", sa.Text, nullable=False),
    sa.Column("least_isolation", sa.Integer, nullable=False),  # rank: 0 process .. 2 hardware-vm
    sa.Column("request", sa.Text, nullable=False),  # RunRequest without secrets
    sa.Column("mounts", sa.Text, nullable=False),  # MountPlan
    sa.Column("resume_session", sa.Text),  # session id and history hash
    sa.Column("created_at_ms", sa.Integer, nullable=False),
    sa.Column("queued_at_ms", sa.Integer, nullable=False),
    sa.Column("started_at_ms", sa.Integer),
    sa.Column("finished_at_ms", sa.Integer),
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("runner_id", sa.Text),
    sa.Column("boot_id", sa.Text),
    sa.Column("runner_name", sa.Text),
    sa.Column("expires_at_ms", sa.Integer, nullable=False, server_default="0"),
    sa.Column("agent_started", sa.Boolean, nullable=False, server_default="0"),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default="0"),
    sa.Column("last_heartbeat_ms", sa.Integer),
    sa.Column("isolation", sa.Text),  # the tier the run really had
    sa.Column("outcome", sa.Text),
    sa.Column("event_count", sa.Integer),  # as announced by the agent at its end
    sa.Column("events_received", sa.Integer, nullable=False, server_default="0"),
    sa.Column("events_contiguous", sa.Integer, nullable=False, server_default="0"),
    sa.Column("events_highest", sa.Integer, nullable=False, server_default="-1"),
    sa.Column("system_log_bytes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("system_log_full", sa.Boolean, nullable=False, server_default="0"),
    sa.Index("runs_by_user", "user_id", "num"),
    sa.Index("runs_waiting", "group_name", "num", sqlite_where=sa.text("status = 'pending'")),
    sa.Index("runs_leased", "expires_at_ms", sqlite_where=sa.text("status = 'running'")),
    sqlite_autoincrement=True,
)

run_secrets = sa.Table(
    "run_secrets",
    metadata,
    sa.Column("run_num", sa.Integer, primary_key=True),
    sa.Column("secrets", sa.Text, nullable=False),
)

timelines = sa.Table(
    "timelines",
    metadata,
    sa.Column("run_num", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("part", sa.Text, primary_key=True),  # before | runner | after
    sa.Column("steps", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("run_num", sa.Integer, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("event", sa.Text, nullable=False),
)

system_logs = sa.Table(
    "system_logs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_num", sa.Integer, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Index("system_logs_by_run", "run_num", "id"),
)

telemetry_counts = sa.Table(
    "telemetry_counts",
    metadata,
    sa.Column("run_num", sa.Integer, primary_key=True),
    sa.Column("stream", sa.Text, primary_key=True),  # metrics | sandbox_operations | network_logs
    sa.Column("stored", sa.Integer, nullable=False),
    sa.Column("dropped", sa.Integer, nullable=False),
)

telemetry_records = sa.Table(
    "telemetry_records",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_num", sa.Integer, nullable=False),
    sa.Column("stream", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Index("telemetry_records_by_run", "run_num", "stream", "id"),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("run_num", sa.Integer, primary_key=True),
    sa.Column("checkpoint_id", sa.Text, nullable=False, unique=True),
    sa.Column("cli_agent_type", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text),
    sa.Column("history_hash", sa.Text),
    sa.Column("artifact_name", sa.Text),
    sa.Column("artifact_version", sa.Text),
    sa.Column("memory_name", sa.Text),
    sa.Column("memory_version", sa.Text),
    sa.Column("created_at_ms", sa.Integer, nullable=False),
)

storages = sa.Table(
    "storages",
    metadata,
    sa.Column("storage_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("storage_type", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("head_version", sa.Text),
    sa.Column("created_at_ms", sa.Integer, nullable=False),
    sa.UniqueConstraint("user_id", "storage_type", "name"),
)

storage_versions = sa.Table(
    "storage_versions",
    metadata,
    sa.Column("storage_id", sa.Text, primary_key=True),
    sa.Column("version_id", sa.Text, primary_key=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("file_count", sa.Integer, nullable=False),
    sa.Column("message", sa.Text),
    sa.Column("run_id", sa.Text),  # the run that made it, if one did
    sa.Column("created_at_ms", sa.Integer, nullable=False),
)
