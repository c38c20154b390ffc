"""Telling the server how a run ended: on disk first, then tried until the server has answered, crash or no crash.

A `complete` ends with any definite answer: stored, terminal already, lease lost, run unknown. A `release` gives a run
back whose agent was never started.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from vm0.contracts.errors import ErrorCode
from vm0.contracts.runner import ReleaseRequest
from vm0.contracts.webhooks import CompleteRequest
from vm0.runner.backoff import Backoff
from vm0.runner.clock import BootClock, Clock
from vm0.runner.control_plane import ControlPlane, ControlPlaneUnavailable, LeaseLost, Refused
from vm0.runner.failpoints import Failpoints
from vm0.runner.phases import unwind
from vm0.runner.spool import Journal, JournalRecord, JournalState, Spool

log = logging.getLogger(__name__)

RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0
HOPELESS_STATUS = {400, 413, 422}  # the report itself is the problem: only a smaller one has a chance


class Reporter:
    """Owns the deliveries, each a named task. `settle` ends them at shutdown; what is undelivered stays on disk."""

    def __init__(
        self,
        control_plane: ControlPlane,
        spool: Spool,
        *,
        failpoints: Failpoints | None = None,
        clock: Clock | None = None,
        retry_min_s: float = RETRY_MIN_S,
    ) -> None:
        self._control_plane, self._spool = control_plane, spool
        self._failpoints = failpoints or Failpoints()
        self._clock: Clock = clock or BootClock()
        self._retry_min_s = retry_min_s
        self._deliveries: set[asyncio.Task[str]] = set()

    async def submit(self, record: JournalRecord, journal: Journal | None = None) -> asyncio.Task[str]:
        """Journal a REPORTED record and start to deliver it; the task's result says how that ended."""
        journal = journal or self._spool.journal(record.run_id, record.epoch)
        try:
            await asyncio.to_thread(journal.write, record)
        except OSError as exc:
            extra = {"action": "spool_failed", "run_id": record.run_id}
            log.error("report cannot be stored, a crash now would lose it: %s", exc, extra=extra)
        await self._failpoints("executor.outcome_journaled")
        task = asyncio.create_task(self._deliver(record, journal), name=f"report-{record.run_id}")
        self._deliveries.add(task)
        task.add_done_callback(self._ended)
        return task

    async def settle(self, limit_s: float) -> int:
        """Wait for the deliveries, at most this long; returns how many stay on disk for the next start."""
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=limit_s)
        left = list(self._deliveries)
        await unwind(*left)
        return len(left)

    def _ended(self, task: asyncio.Task[str]) -> None:
        self._deliveries.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a delivery failed: %r", exc, exc_info=exc, extra={"action": "report_bug"})

    async def _deliver(self, record: JournalRecord, journal: Journal) -> str:
        backoff = Backoff(self._retry_min_s, RETRY_MAX_S)
        await self._failpoints("completion.before_report")
        answer = ""
        while not answer:
            try:
                answer = await self._send(record)
            except (ControlPlaneUnavailable, Refused) as exc:
                wait_s = backoff.next_s()
                extra = {"action": "report_retried", "run_id": record.run_id}
                log.warning("%s; next try in %.1f s", exc, wait_s, extra=extra)
                await self._clock.sleep(wait_s)
        await self._failpoints("completion.after_report")
        await asyncio.to_thread(journal.remove)
        log.info("run reported: %s", answer, extra={"action": "run_reported", "run_id": record.run_id})
        return answer

    async def _send(self, record: JournalRecord) -> str:
        """One try. A definite answer is the returned word; raises if another try can change it."""
        if record.release is not None:
            return await self._release(record.run_id, record.release)
        complete = record.complete
        if complete is None:
            return "nothing"
        try:
            return (await self._control_plane.complete(complete)).status
        except LeaseLost:
            return "lease_lost"
        except Refused as exc:
            if exc.status in HOPELESS_STATUS and complete.timeline:
                log.error(
                    "%s; reporting without timeline", exc, extra={"action": "report_cut", "run_id": record.run_id}
                )
                return (await self._control_plane.complete(bare(complete))).status
            if _definite(exc):
                return _word(exc)
            raise

    async def _release(self, run_id: str, request: ReleaseRequest) -> str:
        try:
            answer = await self._control_plane.release(run_id, request)
        except LeaseLost:
            return "lease_lost"
        except Refused as exc:
            if _definite(exc):
                return _word(exc)
            raise
        return "requeued" if answer.requeued else "failed"


def _definite(exc: Refused) -> bool:
    """Tokens can be renewed and addresses corrected; a run that is unknown or a body that is illegal stays so."""
    return exc.status in HOPELESS_STATUS or exc.code in (ErrorCode.NOT_FOUND, ErrorCode.CONFLICT)


def _word(exc: Refused) -> str:
    log.error("report was not taken: %s", exc, extra={"action": "report_refused"})
    return exc.code.value.lower() if exc.code else "refused"


def bare(complete: CompleteRequest) -> CompleteRequest:
    """The least that still says how the run ended."""
    outcome = None if complete.outcome is None else dataclasses.replace(complete.outcome, detail=None)
    return dataclasses.replace(complete, timeline=(), error=None, outcome=outcome)


def completed(record: JournalRecord, complete: CompleteRequest) -> JournalRecord:
    return dataclasses.replace(record, state=JournalState.REPORTED, complete=complete, release=None)


def released(record: JournalRecord, release: ReleaseRequest) -> JournalRecord:
    return dataclasses.replace(record, state=JournalState.REPORTED, release=release, complete=None)
