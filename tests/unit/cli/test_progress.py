"""The three ways a command talks, on a real terminal, in a pipe and as NDJSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from vm0.cli.progress import progress_for
from vm0.contracts.runs import AgentKind, RunStatus, RunView, TimelineStep
progress = progress_for(as_json="--json" in sys.argv, plain="--plain" in sys.argv)
progress.note("a note")
progress.doing("waiting")
progress.phase(TimelineStep(phase="start", started_at_ms=1, duration_ms=12))
progress.phase(TimelineStep(phase="agent", started_at_ms=1, duration_ms=5, ok=False, detail="no [bold]guest"))
said = {"type": "text", "text": "evil \\x1b]0;title\\x07 text"}
progress.event({"type": "assistant", "message": {"content": [said]}})
progress.event({"type": "output", "stream": "stdout", "text": "data"})
progress.ended(RunView(run_id="r", status=RunStatus.FAILED, cli_agent_type=AgentKind.COMMAND, group="a/b", prompt="x",
                       created_at_ms=1))
progress.data("result")
progress.close()
progress.close()
"""
PLAIN = [
    "vm0: a note",
    "· start 12 ms",
    "! agent 5 ms: no [bold]guest",
    "evil  text",
    "vm0: run r: failed, unknown, …",
    "vm0: isolation: not known",
]


def test_in_a_pipe_it_is_one_line_each() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=30)
    assert found.stdout.decode() == "data\nresult\n"
    assert found.stderr.decode().splitlines() == PLAIN


def test_json_has_records_on_stdout_and_notes_on_stderr() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT, "--json"], capture_output=True, timeout=30)
    records = [json.loads(line) for line in found.stdout.splitlines()]
    assert [record["type"] for record in records] == ["phase", "phase", "event", "event"]
    assert records[1] == {
        "type": "phase", "phase": "agent", "startedAtMs": 1, "durationMs": 5.0, "ok": False,
        "detail": "no [bold]guest", "attempt": 1,
    }  # fmt: skip
    assert found.stderr.decode() == "vm0: a note\n"


def test_an_encoding_without_our_marks_is_no_error() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=30, env=environment)
    assert (found.returncode, found.stderr.decode().splitlines()[1]) == (0, "\\xb7 start 12 ms")


def on_terminal(*arguments: str) -> tuple[str, str]:
    """stdout (a pipe) and what a terminal as stderr got."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 4096):
                shown += data
        except OSError:  # EIO: nobody has the terminal open any more
            pass
        assert process.stdout is not None
        stdout = process.stdout.read().decode()
        assert process.wait(30) == 0
    os.close(master)
    return stdout, shown.decode()


def test_a_terminal_gets_colours_and_none_of_the_agents_sequences() -> None:
    stdout, shown = on_terminal()
    assert stdout == "data\nresult\n"
    assert "\x1b[32m✓ start 12 ms\x1b[0m" in shown
    assert "✗ agent 5 ms: no [bold]guest" in shown
    assert "evil  text" in shown
    assert "\x1b]" not in shown and "\x07" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"


@pytest.mark.parametrize("arguments", [("--plain",), ("--plain", "--json")])
def test_a_plain_terminal_gets_no_sequences(arguments: tuple[str, ...]) -> None:
    _, shown = on_terminal(*arguments)
    assert "\x1b" not in shown
    assert shown.startswith("vm0: a note\r\n")
