"""Checkpoints: at most one per run; a repeated report replaces it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection, Row

from vm0.contracts.runs import CheckpointView
from vm0.contracts.webhooks import CheckpointRequest
from vm0.server.db.schema import checkpoints

FIND = sa.select(checkpoints).where(checkpoints.c.run_num == sa.bindparam("num"))


def put(connection: Connection, num: int, request: CheckpointRequest, now_ms: int) -> str:
    """Store what can be resumed and return its id, which stays the same when the report is repeated."""
    artifact, memory = request.artifact_snapshot, request.memory_snapshot
    values: dict[str, Any] = {
        "cli_agent_type": request.cli_agent_type,
        "session_id": request.cli_agent_session_id,
        "history_hash": request.cli_agent_session_history_hash,
        "artifact_name": artifact.artifact_name if artifact else None,
        "artifact_version": artifact.artifact_version if artifact else None,
        "memory_name": memory.memory_name if memory else None,
        "memory_version": memory.memory_version if memory else None,
        "created_at_ms": now_ms,
    }
    row = sqlite_insert(checkpoints).values(run_num=num, checkpoint_id=str(uuid.uuid4()), **values)
    connection.execute(row.on_conflict_do_update(index_elements=["run_num"], set_=values))
    return str(connection.execute(sa.select(checkpoints.c.checkpoint_id).where(checkpoints.c.run_num == num)).scalar())


def find(connection: Connection, num: int) -> Row[Any] | None:
    return connection.execute(FIND, {"num": num}).one_or_none()


def views(connection: Connection, nums: Iterable[int]) -> dict[int, CheckpointView]:
    """The checkpoint of each run that has one."""
    rows = connection.execute(sa.select(checkpoints).where(checkpoints.c.run_num.in_(list(nums))))
    return {
        row.run_num: CheckpointView(
            checkpoint_id=row.checkpoint_id,
            cli_agent_session_id=row.session_id,
            artifact_name=row.artifact_name,
            artifact_version=row.artifact_version,
            memory_name=row.memory_name,
            memory_version=row.memory_version,
        )
        for row in rows
    }
