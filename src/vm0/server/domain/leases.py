"""Who may execute a run, decided from its row and the time: claim, renew, release, expire, cancel, complete.

A lease is named by its epoch, which grows at every give-out, so whoever still acts on an older one can be told
apart. Expiry only matters once it was *taken back*: until then nobody else has the run, and its holder may go on.
Every function returns the row as it shall be, next to the verdict; a row that is returned unchanged needs no write.
"""

from __future__ import annotations

import dataclasses
import enum

from vm0.contracts.runs import Outcome, OutcomeKind, RunStatus
from vm0.server.domain.states import RunAction, after


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What the decisions look at. `runner_id` and `boot_id` stay after a give-back: they name the last holder."""

    status: RunStatus
    epoch: int = 0  # also the number of times the run was given out
    max_attempts: int = 1
    runner_id: str | None = None
    boot_id: str | None = None
    expires_at_ms: int = 0
    agent_started: bool = False
    cancel_requested: bool = False
    outcome: Outcome | None = None


class Claim(enum.Enum):
    GRANTED = "granted"  # a new epoch
    REPEATED = "repeated"  # the same lease again: its first answer was lost
    TAKEN = "taken"  # somebody else has it, or it is over


class Verdict(enum.Enum):
    """What became of a report by a lease holder."""

    DONE = "done"
    REPEATED = "repeated"  # reported before; answered as then
    LOST = "lost"  # not the holder's any more


class Ending(enum.Enum):
    """What taking a lease back (or giving it back) led to."""

    KEPT = "kept"
    REQUEUED = "requeued"
    FINISHED = "finished"


def claim(run: RunState, runner_id: str, boot_id: str, now_ms: int, ttl_ms: int) -> tuple[RunState, Claim]:
    """An expired lease must have been taken back before (`expire`)."""
    if run.status is RunStatus.PENDING:
        granted = dataclasses.replace(
            run,
            status=after(run.status, RunAction.CLAIM),
            epoch=run.epoch + 1,
            runner_id=runner_id,
            boot_id=boot_id,
            expires_at_ms=now_ms + ttl_ms,
            agent_started=False,
        )
        return granted, Claim.GRANTED
    if run.status is RunStatus.RUNNING and (run.runner_id, run.boot_id) == (runner_id, boot_id):
        return dataclasses.replace(run, expires_at_ms=now_ms + ttl_ms), Claim.REPEATED
    return run, Claim.TAKEN


def holds(run: RunState, epoch: int) -> bool:
    """The fence before every write of an attempt."""
    return run.status is RunStatus.RUNNING and run.epoch == epoch


def renew(
    run: RunState, runner_id: str, boot_id: str, epoch: int, agent_started: bool, now_ms: int, ttl_ms: int
) -> tuple[RunState, Verdict]:
    if not holds(run, epoch) or (run.runner_id, run.boot_id) != (runner_id, boot_id):
        return run, Verdict.LOST
    started = run.agent_started or agent_started
    return dataclasses.replace(run, expires_at_ms=now_ms + ttl_ms, agent_started=started), Verdict.DONE


def expire(run: RunState, now_ms: int) -> tuple[RunState, Ending]:
    """Take the lease back if its time is over. A run whose agent may have acted is never given out again."""
    if run.status is not RunStatus.RUNNING or run.expires_at_ms > now_ms:
        return run, Ending.KEPT
    if run.agent_started:
        outcome = Outcome(
            kind=OutcomeKind.LOST,
            reason="lease_expired",
            detail="the runner stopped renewing its lease while the agent was running",
        )
        return _finish(run, RunAction.CANCEL if run.cancel_requested else RunAction.FAIL, outcome)
    return _give_back(run, "the lease of the last attempt expired before the agent started")


def release(run: RunState, runner_id: str, epoch: int, why: str) -> tuple[RunState, Ending, Verdict]:
    """Give a run back before its agent started. Repeating it gives the first answer again.

    The holder's word counts even after it announced the agent's start: it says so before it starts the agent, and a
    runner that died in between knows from its journal that it never did.
    """
    if run.epoch != epoch or run.runner_id != runner_id:
        return run, Ending.KEPT, Verdict.LOST
    if run.status is RunStatus.PENDING:
        return run, Ending.REQUEUED, Verdict.REPEATED
    if run.status.terminal:
        return run, Ending.FINISHED, Verdict.REPEATED
    given_back, ending = _give_back(run, f"the last attempt was given back: {why}")
    return given_back, ending, Verdict.DONE


def cancel(run: RunState) -> tuple[RunState, Ending]:
    """Ask for the end; idempotent. What waits ends at once, what runs is ended by its runner."""
    if run.status.terminal:
        return run, Ending.KEPT
    asked = dataclasses.replace(run, cancel_requested=True)
    if run.status is RunStatus.PENDING:
        return _finish(asked, RunAction.CANCEL, CANCELLED_BEFORE_START)
    return asked, Ending.KEPT


def complete(run: RunState, epoch: int, observed: Outcome, has_checkpoint: bool) -> tuple[RunState, Verdict]:
    """The holder's report of the end. The first one stands: later ones only learn the stored status."""
    if run.status.terminal:
        return run, Verdict.REPEATED
    if not holds(run, epoch):
        return run, Verdict.LOST
    action, outcome = judge(observed, has_checkpoint)
    finished, _ = _finish(run, action, outcome)
    return finished, Verdict.DONE


def judge(observed: Outcome, has_checkpoint: bool) -> tuple[RunAction, Outcome]:
    """What an observed outcome makes of a run; the outcome itself is kept as reported."""
    if observed.kind is OutcomeKind.CANCELLED:
        return RunAction.CANCEL, observed
    if observed.kind is OutcomeKind.EXITED and observed.exit_code == 0:
        if has_checkpoint:
            return RunAction.COMPLETE, observed
        return RunAction.FAIL, dataclasses.replace(observed, reason="checkpoint_missing")
    return RunAction.FAIL, observed


CANCELLED_BEFORE_START = Outcome(
    kind=OutcomeKind.CANCELLED, reason="cancelled_before_start", detail="cancelled before its agent started"
)


def _give_back(run: RunState, why: str) -> tuple[RunState, Ending]:
    """The end of an attempt whose agent never started."""
    if run.cancel_requested:
        return _finish(run, RunAction.CANCEL, CANCELLED_BEFORE_START)
    if run.epoch >= run.max_attempts:
        outcome = Outcome(
            kind=OutcomeKind.UNKNOWN,
            reason="attempts_exhausted",
            detail=f"given out {run.epoch} times, the agent never started; {why}",
        )
        return _finish(run, RunAction.FAIL, outcome)
    requeued = dataclasses.replace(run, status=after(run.status, RunAction.REQUEUE), expires_at_ms=0)
    return requeued, Ending.REQUEUED


def _finish(run: RunState, action: RunAction, outcome: Outcome) -> tuple[RunState, Ending]:
    return dataclasses.replace(run, status=after(run.status, action), outcome=outcome), Ending.FINISHED
