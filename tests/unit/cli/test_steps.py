"""How preparation talks, on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import re

import pytest

from vm0.cli.steps import LineSteps, Steps, TerminalSteps, steps_for


def story(steps: Steps) -> None:
    with contextlib.closing(steps):
        steps.note("hello")
        steps.step("first [thing]")
        steps.fraction(0.5)
        steps.step("second")
        steps.pause()
        steps.step("third")


def test_elsewhere_each_step_is_a_line_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    story(LineSteps())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "vm0: hello"
    assert [re.sub(r"[\d.]+ s", "T", line) for line in lines[1:]] == [
        "vm0:   T  first [thing]", "vm0:   T  second", "vm0:   T  third",
    ]  # fmt: skip


def test_on_a_terminal_each_step_stays_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    story(TerminalSteps())
    said = capsys.readouterr().err
    for text in ("vm0: hello", "✓ first [thing]", "✓ second", "✓ third"):
        assert text in said
    assert "✗" not in said


def test_the_step_that_an_error_ends_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    steps = TerminalSteps()
    with pytest.raises(RuntimeError), contextlib.closing(steps):
        steps.step("first")
        steps.step("second")
        raise RuntimeError
    said = capsys.readouterr().err
    assert "✓ first" in said and "✗ second" in said


def test_no_terminal_means_lines() -> None:
    assert isinstance(steps_for(plain=False), LineSteps)
    assert isinstance(steps_for(plain=True), LineSteps)
