"""How a run's end becomes an exit code and words."""

from __future__ import annotations

import pytest

from vm0.cli.run_summary import abnormal_index, duration_words, exit_code, summary_lines, timeline_rows
from vm0.contracts.runs import AgentKind, CheckpointView, Outcome, OutcomeKind, RunStatus, RunView, TimelineStep


def view(status: RunStatus = RunStatus.COMPLETED, outcome: Outcome | None = None, **fields) -> RunView:
    return RunView(
        run_id="3b1f0000-0000-4000-8000-000000000000",
        status=status,
        cli_agent_type=AgentKind.COMMAND,
        group="vm0/default",
        prompt="x",
        created_at_ms=1_000_000,
        outcome=outcome,
        **fields,
    )


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (RunStatus.COMPLETED, Outcome(kind=OutcomeKind.EXITED, exit_code=0), 0),
        (RunStatus.FAILED, Outcome(kind=OutcomeKind.EXITED, exit_code=3), 3),
        (RunStatus.FAILED, Outcome(kind=OutcomeKind.EXITED, exit_code=0), 125),
        (RunStatus.FAILED, Outcome(kind=OutcomeKind.SIGNALLED, signal=9), 137),
        (RunStatus.FAILED, Outcome(kind=OutcomeKind.TIMED_OUT), 124),
        (RunStatus.CANCELLED, Outcome(kind=OutcomeKind.CANCELLED), 130),
        (RunStatus.FAILED, Outcome(kind=OutcomeKind.LOST), 125),
        (RunStatus.FAILED, Outcome(kind=OutcomeKind.UNKNOWN), 125),
        (RunStatus.FAILED, None, 125),
        (RunStatus.CANCELLED, None, 130),
    ],
)
def test_exit_code(status: RunStatus, outcome: Outcome | None, code: int) -> None:
    assert exit_code(view(status, outcome)) == code


def test_a_zero_that_is_no_success_says_why() -> None:
    outcome = Outcome(kind=OutcomeKind.EXITED, exit_code=0)
    assert "exited with 0, but without a checkpoint" in summary_lines(view(RunStatus.FAILED, outcome))[0]


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_every_outcome_has_words(kind: OutcomeKind) -> None:
    needed = {OutcomeKind.EXITED: {"exit_code": 1}, OutcomeKind.SIGNALLED: {"signal": 9}}.get(kind, {})
    outcome = Outcome(kind=kind, reason="a_reason", detail="and \x1b[31mmore", **needed)
    text = "\n".join(summary_lines(view(RunStatus.FAILED, outcome)))
    assert "(a_reason): and more" in text


def test_the_first_abnormal_step_is_marked_once() -> None:
    steps = (
        TimelineStep(phase="queued", started_at_ms=1_000_000, duration_ms=5),
        TimelineStep(phase="start", started_at_ms=1_000_005, duration_ms=1500, ok=False, detail="no\nguest"),
        TimelineStep(phase="start", started_at_ms=1_002_000, duration_ms=20, attempt=2),
        TimelineStep(phase="agent", started_at_ms=1_003_000, ok=False, attempt=2),
    )
    run = view(RunStatus.FAILED, timeline=steps)
    assert abnormal_index(run) == 1
    assert [row[:4] for row in timeline_rows(run)] == [
        ("", "+0.000 s", "queued", "5 ms"),
        (">", "+0.005 s", "start", "1.50 s"),
        ("", "+2.000 s", "start #2", "20 ms"),
        ("!", "+3.000 s", "agent #2", "…"),
    ]


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(None, "…"), (0, "0 ms"), (999.4, "999 ms"), (1000, "1.00 s"), (59_949, "59.9 s"), (7_199_000, "119 min 59 s"),
     (7_200_000, "2 h 00 min")],
)  # fmt: skip
def test_durations(milliseconds: float | None, words: str) -> None:
    assert duration_words(milliseconds) == words


def test_the_checkpoint_is_named() -> None:
    checkpoint = CheckpointView(
        checkpoint_id="c1", cli_agent_session_id="s1", artifact_name="a", artifact_version="f" * 64
    )
    lines = summary_lines(view(checkpoint=checkpoint))
    assert lines[-1] == f"checkpoint: c1, session s1, artifact a version {'f' * 12}"
