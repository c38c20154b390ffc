"""Rows as the contracts show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection, Row

from vm0.contracts import codec
from vm0.contracts.runs import (
    AgentKind,
    CheckpointView,
    Isolation,
    Outcome,
    RunRequest,
    RunStatus,
    RunView,
    TimelineStep,
)
from vm0.server.db import checkpoints, timelines
from vm0.server.domain.timeline import first_abnormal

SHOWN_PROMPT_CHARACTERS = 4096


def run_views(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[RunView, ...]:
    """Views of full rows of `runs`, in their order."""
    nums = [row.num for row in rows]
    steps_of = timelines.of_runs(connection, nums)
    checkpoint_of = checkpoints.views(connection, nums)
    return tuple(run_view(row, steps_of.get(row.num, ()), checkpoint_of.get(row.num)) for row in rows)


def run_view(row: Row[Any], steps: tuple[TimelineStep, ...], checkpoint: CheckpointView | None) -> RunView:
    request = json.loads(row.request)  # not decoded: a list of runs needs four of its fields
    return RunView(
        run_id=row.run_id,
        status=RunStatus(row.status),
        cli_agent_type=AgentKind(request["cliAgentType"]),
        group=row.group_name,
        prompt=request["prompt"][:SHOWN_PROMPT_CHARACTERS],
        created_at_ms=row.created_at_ms,
        started_at_ms=row.started_at_ms,
        finished_at_ms=row.finished_at_ms,
        attempts=row.epoch,
        cancel_requested=row.cancel_requested,
        least_isolation=Isolation(request["isolation"]),
        isolation=None if row.isolation is None else Isolation(row.isolation),
        runner_name=row.runner_name,
        outcome=None if row.outcome is None else codec.loads(Outcome, row.outcome),
        checkpoint=checkpoint,
        resumed_from=request.get("resumeRunId"),
        events_received=row.events_received,
        events_contiguous=row.events_contiguous,
        timeline=steps,
        first_abnormal_step=first_abnormal(steps),
    )


def stored_request(row: Row[Any]) -> RunRequest:
    """The request as submitted, without its secrets. It was checked when it was stored."""
    return codec.decode(RunRequest, json.loads(row.request))
