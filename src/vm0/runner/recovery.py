"""What a runner does at its start about the runs of a former one on the same state directory.

The sandboxes of that runner are gone by then: the factory's start removes them. So a run that was claimed can be
released, one whose agent had started is lost, and a report that was not delivered is delivered.
"""

from __future__ import annotations

import asyncio
import logging

from vm0.contracts.runner import ReleaseRequest
from vm0.contracts.runs import Isolation, Outcome, OutcomeKind
from vm0.contracts.webhooks import CompleteRequest
from vm0.runner.completion import Reporter, completed, released
from vm0.runner.spool import JournalRecord, JournalState, Spool

log = logging.getLogger(__name__)


def plan_report(record: JournalRecord, runner_id: str, isolation: Isolation) -> JournalRecord:
    """The record to deliver for one that was left behind. Pure."""
    match record.state:
        case JournalState.REPORTED:
            return record
        case JournalState.CLAIMED:
            release = ReleaseRequest(
                runner_id=runner_id,
                epoch=record.epoch,
                reason="runner_restarted",
                detail="the runner ended before the agent started",
            )
            return released(record, release)
        case JournalState.AGENT_STARTED:
            outcome = Outcome(
                kind=OutcomeKind.LOST,
                reason="runner_crashed",
                detail="the runner ended while the agent was running",
            )
            complete = CompleteRequest(run_id=record.run_id, epoch=record.epoch, outcome=outcome, isolation=isolation)
            return completed(record, complete)


async def recover(spool: Spool, reporter: Reporter, *, runner_id: str, isolation: Isolation) -> int:
    """Start to deliver what is due for every record left behind; returns how many there are."""
    records, bad = await asyncio.to_thread(spool.left_over)
    for path in bad:
        log.error("%s is not a journal; set aside", path, extra={"action": "spool_bad"})
    for record in records:
        await reporter.submit(plan_report(record, runner_id, isolation))
        extra = {"action": "run_recovered", "run_id": record.run_id}
        log.warning("a former runner left this run behind in state %s", record.state.value, extra=extra)
    return len(records)
