"""How a run ended, decided from what was observed: pure, and never more than that.

The host's own observation (time limit, cancel, signal, crash) wins over what the guest claims; the guest may only say
more about an exit that it agrees with.
"""

from __future__ import annotations

import dataclasses
import json

from vm0.contracts import codec
from vm0.contracts.runs import Outcome, OutcomeKind
from vm0.runner.interruption import StopCause
from vm0.runner.redaction import Redactor
from vm0.sandbox import Ended, ExecResult, Reason

MAX_REPORT_BYTES = 512 * 1024  # of outcome.json: 64 KiB of detail, six bytes each at worst
MAX_DETAIL_BYTES = 16 * 1024
TERMINATED = "terminated"  # guest-agent's reason when it ended because it was asked to


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestReport:
    """outcome.json of guest-agent."""

    outcome: Outcome
    event_count: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentEnd:
    """What the host saw of the agent. Without `result`, `failure` says why there is none."""

    result: ExecResult | None = None
    failure: Reason | None = None
    failure_detail: str = ""
    started: bool = True  # False: the guest said that it could not start it
    asked: StopCause | None = None  # why we ended it, if we did
    watchdog: bool = False  # it outlived its time limit and the sandbox was killed


def guest_report(data: bytes) -> GuestReport | None:
    """None if the guest wrote something else than a report."""
    try:
        fields = json.loads(data)
        outcome = codec.decode(Outcome, fields)
    except (ValueError, RecursionError):  # ContractError is a ValueError
        return None
    count = fields.get("eventCount")
    valid = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= codec.INT64_MAX
    return GuestReport(outcome=outcome, event_count=count if valid else None)


def observed_outcome(end: AgentEnd, report: GuestReport | None, redact: Redactor) -> Outcome:
    """The one outcome of a run whose agent was started, or at least marked as started."""
    outcome = _decide(end, report)
    detail = None if outcome.detail is None else redact(outcome.detail, MAX_DETAIL_BYTES)
    return dataclasses.replace(outcome, detail=detail)


def _decide(end: AgentEnd, report: GuestReport | None) -> Outcome:
    said = report.outcome if report else None
    if end.asked is not None and _ended_by_us(end, said):
        return _stopped(end.asked, said)
    if end.watchdog:
        return Outcome(
            kind=OutcomeKind.TIMED_OUT, reason="run_timeout", detail="the agent did not end at its time limit; killed"
        )
    if end.result is None:
        return _unobserved(end)
    match end.result.ended:
        case Ended.EXITED:
            return _exited(end.result.exit_code or 0, said)
        case Ended.SIGNALLED if end.result.signal:
            return Outcome(
                kind=OutcomeKind.SIGNALLED,
                signal=end.result.signal,
                reason="agent_signalled",
                detail=f"guest-agent was ended by signal {end.result.signal}",
            )
        case Ended.TIMED_OUT:
            return Outcome(
                kind=OutcomeKind.TIMED_OUT, reason="run_timeout", detail="the run reached its time limit and was ended"
            )
        case Ended.COULD_NOT_START:
            return _could_not_start(end.result.diagnostic)
        case _:  # cancelled without anybody having asked, or a signal without a number
            detail = f"the sandbox reported {end.result.ended.value} without a cause"
            return Outcome(kind=OutcomeKind.UNKNOWN, reason="end_unexplained", detail=detail)


def _ended_by_us(end: AgentEnd, said: Outcome | None) -> bool:
    """Whether our request ended the agent: not if it had ended by itself just before."""
    if end.result is None:
        return True  # nothing was seen but our own killing
    if end.result.ended is Ended.CANCELLED:
        return True
    if end.result.ended is not Ended.EXITED:
        return False
    return end.result.exit_code == 143 if said is None else said.reason == TERMINATED


def _stopped(cause: StopCause, said: Outcome | None) -> Outcome:
    match cause:
        case StopCause.CANCEL_REQUESTED:
            return Outcome(kind=OutcomeKind.CANCELLED, reason="cancel_requested", detail="ended because its user asked")
        case StopCause.RUNNER_STOPPED:
            return Outcome(
                kind=OutcomeKind.LOST, reason="runner_stopped", detail="the runner was told to stop and ended the agent"
            )
        case StopCause.LEASE_EXPIRED | StopCause.LEASE_LOST:
            return Outcome(
                kind=OutcomeKind.LOST,
                reason=cause.value,
                detail="the runner could not keep the lease and ended the agent",
            )


def _unobserved(end: AgentEnd) -> Outcome:
    if not end.started:
        return _could_not_start(end.failure_detail)
    if end.failure is Reason.CRASHED:
        detail = end.failure_detail or "the sandbox died"
        return Outcome(kind=OutcomeKind.LOST, reason="sandbox_crashed", detail=detail)
    reason = f"sandbox_{end.failure.value}" if end.failure else "sandbox_failed"
    return Outcome(kind=OutcomeKind.UNKNOWN, reason=reason, detail=end.failure_detail or "the agent's end was not seen")


def _could_not_start(detail: str) -> Outcome:
    return Outcome(
        kind=OutcomeKind.UNKNOWN, reason="agent_could_not_start", detail=detail or "guest-agent could not be started"
    )


def _exited(code: int, said: Outcome | None) -> Outcome:
    if said is None:
        return Outcome(
            kind=OutcomeKind.EXITED,
            exit_code=code,
            reason="agent_report_missing",
            detail="guest-agent ended without a readable outcome.json",
        )
    agrees = (
        (said.kind is OutcomeKind.EXITED and said.exit_code == code)
        or (said.kind is OutcomeKind.SIGNALLED and code == 128 + (said.signal or 0))
        or (said.kind is OutcomeKind.UNKNOWN and code != 0)
    )
    if agrees:
        return said
    return Outcome(
        kind=OutcomeKind.EXITED,
        exit_code=code,
        reason="agent_report_disagrees",
        detail=f"guest-agent exited with {code} but wrote: {said.kind.value} {said.exit_code}",
    )
