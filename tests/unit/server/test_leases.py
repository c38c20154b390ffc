"""The decisions about leases, one by one; `test_lease_machine` looks at their combinations."""

from __future__ import annotations

import itertools

import pytest

from vm0.contracts.runs import Outcome, OutcomeKind, RunStatus
from vm0.server.domain import leases
from vm0.server.domain.leases import Claim, Ending, RunState, Verdict
from vm0.server.domain.states import TRANSITIONS, IllegalTransition, RunAction, after

PENDING = RunState(status=RunStatus.PENDING, max_attempts=3)
RUNNING = RunState(status=RunStatus.RUNNING, epoch=2, max_attempts=3, runner_id="r", boot_id="b", expires_at_ms=1000)


def over(status: RunStatus) -> RunState:
    return RunState(status=status, epoch=2, max_attempts=3, runner_id="r", boot_id="b")


TERMINAL = [over(status) for status in RunStatus if status.terminal]


@pytest.mark.parametrize(("status", "action"), list(itertools.product(RunStatus, RunAction)))
def test_every_state_and_action_is_either_in_the_table_or_an_error(status: RunStatus, action: RunAction) -> None:
    if (status, action) in TRANSITIONS:
        assert after(status, action) is TRANSITIONS[status, action]
        assert not status.terminal, "nothing leads out of a terminal state"
    else:
        with pytest.raises(IllegalTransition, match=f"a {status.value} run cannot {action.value}"):
            after(status, action)


def test_a_claim_starts_the_next_epoch() -> None:
    state, verdict = leases.claim(PENDING, "r", "b", 100, 30)
    assert verdict is Claim.GRANTED
    assert (state.status, state.epoch, state.expires_at_ms) == (RunStatus.RUNNING, 1, 130)
    assert (state.runner_id, state.boot_id, state.agent_started) == ("r", "b", False)


def test_only_the_same_runner_and_boot_may_repeat_a_claim() -> None:
    state, verdict = leases.claim(RUNNING, "r", "b", 900, 30)
    assert (verdict, state.epoch, state.expires_at_ms) == (Claim.REPEATED, 2, 930)
    for runner_id, boot_id in (("r", "other"), ("other", "b")):
        assert leases.claim(RUNNING, runner_id, boot_id, 900, 30) == (RUNNING, Claim.TAKEN)


@pytest.mark.parametrize("run", TERMINAL, ids=lambda run: run.status.value)
def test_what_is_over_stays_as_it_is(run: RunState) -> None:
    outcome = Outcome(kind=OutcomeKind.EXITED, exit_code=0)
    assert leases.claim(run, "r", "b", 0, 30) == (run, Claim.TAKEN)
    assert leases.renew(run, "r", "b", 2, True, 0, 30) == (run, Verdict.LOST)
    assert leases.expire(run, 10**9) == (run, Ending.KEPT)
    assert leases.cancel(run) == (run, Ending.KEPT)
    assert leases.complete(run, 2, outcome, True) == (run, Verdict.REPEATED)
    assert leases.release(run, "r", 2, "why") == (run, Ending.FINISHED, Verdict.REPEATED)


@pytest.mark.parametrize(
    ("runner_id", "boot_id", "epoch", "verdict"),
    [
        ("r", "b", 2, Verdict.DONE),
        ("x", "b", 2, Verdict.LOST),
        ("r", "x", 2, Verdict.LOST),
        ("r", "b", 1, Verdict.LOST),
        ("r", "b", 3, Verdict.LOST),
    ],
)
def test_renewing(runner_id: str, boot_id: str, epoch: int, verdict: Verdict) -> None:
    state, found = leases.renew(RUNNING, runner_id, boot_id, epoch, True, 5000, 30)  # expired, not taken back
    assert found is verdict
    assert (state.agent_started, state.expires_at_ms) == ((True, 5030) if verdict is Verdict.DONE else (False, 1000))


def test_a_started_agent_stays_started() -> None:
    state, _ = leases.renew(RUNNING, "r", "b", 2, True, 0, 30)
    state, _ = leases.renew(state, "r", "b", 2, False, 0, 30)
    assert state.agent_started


@pytest.mark.parametrize(
    ("started", "cancelling", "attempts", "status", "kind"),
    [
        (False, False, 3, RunStatus.PENDING, None),
        (False, False, 2, RunStatus.FAILED, OutcomeKind.UNKNOWN),
        (False, True, 3, RunStatus.CANCELLED, OutcomeKind.CANCELLED),
        (False, True, 2, RunStatus.CANCELLED, OutcomeKind.CANCELLED),
        (True, False, 3, RunStatus.FAILED, OutcomeKind.LOST),
        (True, True, 3, RunStatus.CANCELLED, OutcomeKind.LOST),
    ],
)
def test_expiry(started: bool, cancelling: bool, attempts: int, status: RunStatus, kind: OutcomeKind | None) -> None:
    run = RunState(
        status=RunStatus.RUNNING,
        epoch=2,
        max_attempts=attempts,
        runner_id="r",
        boot_id="b",
        expires_at_ms=1000,
        agent_started=started,
        cancel_requested=cancelling,
    )
    assert leases.expire(run, 999) == (run, Ending.KEPT)
    state, ending = leases.expire(run, 1000)
    assert state.status is status
    assert ending is (Ending.REQUEUED if kind is None else Ending.FINISHED)
    assert (state.outcome.kind if state.outcome else None) is kind
    if not started:
        given_back, ending_too, verdict = leases.release(run, "r", 2, "why")
        assert (given_back.status, ending_too, verdict) == (status, ending, Verdict.DONE)


def test_releasing_needs_the_holder_whose_word_counts_about_the_agent() -> None:
    assert leases.release(RUNNING, "other", 2, "why")[2] is Verdict.LOST
    assert leases.release(RUNNING, "r", 1, "why")[2] is Verdict.LOST
    started, _ = leases.renew(RUNNING, "r", "b", 2, True, 0, 30)
    given_back, ending, verdict = leases.release(started, "r", 2, "why")
    assert (given_back.status, ending, verdict) == (RunStatus.PENDING, Ending.REQUEUED, Verdict.DONE)
    waiting, _, _ = leases.release(RUNNING, "r", 2, "why")
    assert leases.release(waiting, "r", 2, "why") == (waiting, Ending.REQUEUED, Verdict.REPEATED)


@pytest.mark.parametrize(
    ("observed", "checkpoint", "action", "reason"),
    [
        (Outcome(kind=OutcomeKind.EXITED, exit_code=0), True, RunAction.COMPLETE, None),
        (Outcome(kind=OutcomeKind.EXITED, exit_code=0), False, RunAction.FAIL, "checkpoint_missing"),
        (Outcome(kind=OutcomeKind.EXITED, exit_code=1), True, RunAction.FAIL, None),
        (Outcome(kind=OutcomeKind.SIGNALLED, signal=9), True, RunAction.FAIL, None),
        (Outcome(kind=OutcomeKind.TIMED_OUT), True, RunAction.FAIL, None),
        (Outcome(kind=OutcomeKind.LOST), True, RunAction.FAIL, None),
        (Outcome(kind=OutcomeKind.UNKNOWN), True, RunAction.FAIL, None),
        (Outcome(kind=OutcomeKind.CANCELLED), True, RunAction.CANCEL, None),
    ],
)
def test_judging_an_outcome_keeps_what_was_observed(
    observed: Outcome, checkpoint: bool, action: RunAction, reason: str | None
) -> None:
    decided, kept = leases.judge(observed, checkpoint)
    assert decided is action
    assert (kept.kind, kept.exit_code, kept.signal, kept.reason) == (
        observed.kind,
        observed.exit_code,
        observed.signal,
        reason,
    )
