"""The outcome is what was observed: a table of everything host and guest can say, and a search for contradictions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.contracts import codec
from vm0.contracts.runs import Outcome, OutcomeKind
from vm0.runner.interruption import StopCause
from vm0.runner.outcomes import AgentEnd, GuestReport, guest_report, observed_outcome
from vm0.runner.redaction import Redactor
from vm0.sandbox import Ended, ExecResult, Reason

SAID_OK = Outcome(kind=OutcomeKind.EXITED, exit_code=0)
SAID_TERMINATED = Outcome(kind=OutcomeKind.EXITED, exit_code=143, reason="terminated")
SAID_UNKNOWN = Outcome(kind=OutcomeKind.UNKNOWN, reason="spawn_failed")


def exited(code: int) -> ExecResult:
    return ExecResult(ended=Ended.EXITED, exit_code=code)


def outcome(end: AgentEnd, said: Outcome | None = None) -> Outcome:
    report = GuestReport(outcome=said, event_count=1) if said else None
    return observed_outcome(end, report, Redactor())


K, R = OutcomeKind, Ended
TABLE = [
    # what the host saw, what the guest said, the outcome
    (AgentEnd(result=exited(0)), SAID_OK, K.EXITED, None),
    (AgentEnd(result=exited(0)), None, K.EXITED, "agent_report_missing"),
    (AgentEnd(result=exited(1)), SAID_OK, K.EXITED, "agent_report_disagrees"),
    (AgentEnd(result=exited(0)), SAID_UNKNOWN, K.EXITED, "agent_report_disagrees"),
    (AgentEnd(result=exited(1)), SAID_UNKNOWN, K.UNKNOWN, "spawn_failed"),
    (AgentEnd(result=exited(1)), Outcome(kind=K.CANCELLED), K.EXITED, "agent_report_disagrees"),
    (AgentEnd(result=exited(1)), Outcome(kind=K.TIMED_OUT), K.EXITED, "agent_report_disagrees"),
    (AgentEnd(result=exited(139)), Outcome(kind=K.SIGNALLED, signal=11), K.SIGNALLED, None),
    (AgentEnd(result=ExecResult(ended=R.SIGNALLED, signal=9)), SAID_OK, K.SIGNALLED, "agent_signalled"),
    (AgentEnd(result=ExecResult(ended=R.TIMED_OUT)), SAID_OK, K.TIMED_OUT, "run_timeout"),
    (AgentEnd(result=ExecResult(ended=R.COULD_NOT_START)), None, K.UNKNOWN, "agent_could_not_start"),
    (AgentEnd(result=ExecResult(ended=R.CANCELLED)), SAID_OK, K.UNKNOWN, "end_unexplained"),
    (AgentEnd(failure=Reason.CRASHED), None, K.LOST, "sandbox_crashed"),
    (AgentEnd(failure=Reason.PROTOCOL), None, K.UNKNOWN, "sandbox_protocol"),
    (AgentEnd(failure=Reason.GUEST, started=False), None, K.UNKNOWN, "agent_could_not_start"),
    (AgentEnd(failure=Reason.CRASHED, watchdog=True), None, K.TIMED_OUT, "run_timeout"),
    # ended because somebody asked
    (AgentEnd(result=ExecResult(ended=R.CANCELLED), asked=StopCause.CANCEL_REQUESTED), SAID_TERMINATED, K.CANCELLED,
     "cancel_requested"),
    (AgentEnd(result=exited(143), asked=StopCause.CANCEL_REQUESTED), SAID_TERMINATED, K.CANCELLED, "cancel_requested"),
    (AgentEnd(failure=Reason.CRASHED, asked=StopCause.CANCEL_REQUESTED), None, K.CANCELLED, "cancel_requested"),
    (AgentEnd(failure=Reason.CRASHED, asked=StopCause.RUNNER_STOPPED), None, K.LOST, "runner_stopped"),
    (AgentEnd(failure=Reason.CRASHED, asked=StopCause.LEASE_EXPIRED), None, K.LOST, "lease_expired"),
    # it had ended by itself before the request could reach it
    (AgentEnd(result=exited(0), asked=StopCause.CANCEL_REQUESTED), SAID_OK, K.EXITED, None),
    (AgentEnd(result=exited(5), asked=StopCause.CANCEL_REQUESTED), None, K.EXITED, "agent_report_missing"),
    (AgentEnd(result=ExecResult(ended=R.TIMED_OUT), asked=StopCause.CANCEL_REQUESTED), None, K.TIMED_OUT,
     "run_timeout"),
    (AgentEnd(result=ExecResult(ended=R.SIGNALLED, signal=9), asked=StopCause.CANCEL_REQUESTED), None, K.SIGNALLED,
     "agent_signalled"),
]  # fmt: skip


@pytest.mark.parametrize(("end", "said", "kind", "reason"), TABLE)
def test_outcome(end: AgentEnd, said: Outcome | None, kind: OutcomeKind, reason: str | None) -> None:
    found = outcome(end, said)
    assert (found.kind, found.reason) == (kind, reason)


results = st.builds(
    ExecResult,
    ended=st.sampled_from(Ended),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
)
ends = st.builds(
    AgentEnd,
    result=st.none() | results,
    failure=st.none() | st.sampled_from(Reason),
    failure_detail=st.text(max_size=50),
    started=st.booleans(),
    asked=st.none() | st.sampled_from(StopCause),
    watchdog=st.booleans(),
)


@settings(deadline=None)  # the machine may be busy
@given(ends, st.sampled_from([None, SAID_OK, SAID_TERMINATED, SAID_UNKNOWN]))
def test_nothing_is_invented(end: AgentEnd, said: Outcome | None) -> None:
    """Whatever was seen: the outcome satisfies its contract, and an exit code is one that was seen."""
    found = outcome(end, said)
    assert codec.decode(Outcome, codec.encode(found)) == found
    if found.kind is OutcomeKind.EXITED:
        assert end.result is not None and end.result.ended is Ended.EXITED
        assert found.exit_code == (end.result.exit_code or 0)
    if end.result is None:
        assert found.kind is not OutcomeKind.EXITED and found.kind is not OutcomeKind.SIGNALLED


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{}", b"\xff", b'{"kind":"exited"}', b'{"kind":"exited","exitCode":256}',
        b'{"kind":"exited","exitCode":true}', b"[" * 100_000, b'{"kind":"\\ud800"}',
        b'{"kind":"exited","exitCode":0,"detail":"\\u0000"}',
    ],
)  # fmt: skip
def test_a_report_that_is_none(data: bytes) -> None:
    assert guest_report(data) is None


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (7, 7), (-1, None), (True, None), ("7", None), (2**70, None), (None, None)]
)
def test_the_event_count_is_a_number_or_absent(count: object, expected: int | None) -> None:
    report = guest_report(json.dumps({"kind": "exited", "exitCode": 0, "eventCount": count}).encode())
    assert report is not None and report.event_count == expected


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=200))
def test_no_report_crashes_the_reader(data: bytes) -> None:
    guest_report(data)
