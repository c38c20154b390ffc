"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("num", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False, unique=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("group_name", sa.Text, nullable=False),
        sa.Column("least_isolation", sa.Integer, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("mounts", sa.Text, nullable=False),
        sa.Column("resume_session", sa.Text),
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
        sa.Column("isolation", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("event_count", sa.Integer),
        sa.Column("events_received", sa.Integer, nullable=False, server_default="0"),
        sa.Column("events_contiguous", sa.Integer, nullable=False, server_default="0"),
        sa.Column("events_highest", sa.Integer, nullable=False, server_default="-1"),
        sa.Column("system_log_bytes", sa.Integer, nullable=False, server_default="0"),
        sa.Column("system_log_full", sa.Boolean, nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.create_index("runs_by_user", "runs", ["user_id", "num"])
    op.create_index("runs_waiting", "runs", ["group_name", "num"], sqlite_where=sa.text("status = 'pending'"))
    op.create_index("runs_leased", "runs", ["expires_at_ms"], sqlite_where=sa.text("status = 'running'"))


def _create_run_secrets() -> None:
    op.create_table(
        "run_secrets",
        sa.Column("run_num", sa.Integer, primary_key=True),
        sa.Column("secrets", sa.Text, nullable=False),
    )


def _create_timelines() -> None:
    op.create_table(
        "timelines",
        sa.Column("run_num", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("part", sa.Text, primary_key=True),
        sa.Column("steps", sa.Text, nullable=False),
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("run_num", sa.Integer, primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("event", sa.Text, nullable=False),
    )


def _create_system_logs() -> None:
    op.create_table(
        "system_logs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_num", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("system_logs_by_run", "system_logs", ["run_num", "id"])


def _create_telemetry_counts() -> None:
    op.create_table(
        "telemetry_counts",
        sa.Column("run_num", sa.Integer, primary_key=True),
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("stored", sa.Integer, nullable=False),
        sa.Column("dropped", sa.Integer, nullable=False),
    )


def _create_telemetry_records() -> None:
    op.create_table(
        "telemetry_records",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_num", sa.Integer, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("telemetry_records_by_run", "telemetry_records", ["run_num", "stream", "id"])


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
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


def _create_storages() -> None:
    op.create_table(
        "storages",
        sa.Column("storage_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("storage_type", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("head_version", sa.Text),
        sa.Column("created_at_ms", sa.Integer, nullable=False),
        sa.UniqueConstraint("user_id", "storage_type", "name"),
    )


def _create_storage_versions() -> None:
    op.create_table(
        "storage_versions",
        sa.Column("storage_id", sa.Text, primary_key=True),
        sa.Column("version_id", sa.Text, primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("file_count", sa.Integer, nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("created_at_ms", sa.Integer, nullable=False),
    )


def upgrade() -> None:
    _create_runs()
    _create_run_secrets()
    _create_timelines()
    _create_events()
    _create_system_logs()
    _create_telemetry_counts()
    _create_telemetry_records()
    _create_checkpoints()
    _create_storages()
    _create_storage_versions()


def downgrade() -> None:
    op.drop_table("storage_versions")
    op.drop_table("storages")
    op.drop_table("checkpoints")
    op.drop_table("telemetry_records")
    op.drop_table("telemetry_counts")
    op.drop_table("system_logs")
    op.drop_table("events")
    op.drop_table("timelines")
    op.drop_table("run_secrets")
    op.drop_table("runs")
