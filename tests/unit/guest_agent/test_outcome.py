from __future__ import annotations

import json
import pathlib
import signal

import pytest

from vm0.contracts import codec, runs
from vm0.guest_agent import outcome
from vm0.guest_agent.outcome import MAX_DETAIL_BYTES, Outcome, failure, last_bytes
from vm0.guest_agent.supervisor import Ending, plan_outcome


@pytest.mark.parametrize(
    ("ending", "result_is_error", "kind", "code", "reason"),
    [
        (Ending(0), False, "exited", 0, ""),
        (Ending(0), None, "exited", 0, ""),  # without a result
        (Ending(3), False, "exited", 3, ""),
        (Ending(None, signal.SIGKILL), None, "signalled", 137, ""),
        (Ending(None, signal.SIGSEGV), None, "signalled", 139, ""),
        (Ending(), None, "unknown", 1, "agent_unkillable"),
        (Ending(None, 15, stop_cause="stopped_after_result", stop_reason="stopped_after_result"), False, "exited", 0,
         "stopped_after_result"),
        (Ending(None, 9, stop_cause="stopped_after_result", stop_reason="stopped_after_result"), True, "exited", 1,
         "stopped_after_result"),
        (Ending(None, 15, stop_cause="stuck_tool", stop_reason="stuck_tool"), None, "exited", 1, "stuck_tool"),
        (Ending(None, 15, stop_cause="requested", stop_reason="lease_lost"), None, "exited", 1, "lease_lost"),
        (Ending(0, stop_cause="requested", stop_reason="terminated"), False, "exited", 143, "terminated"),
    ],
)  # fmt: skip
def test_outcomes(ending: Ending, result_is_error: bool | None, kind: str, code: int, reason: str) -> None:
    found = plan_outcome(ending, result_is_error, "the end of stderr")
    assert (found.kind, found.process_exit_code, found.reason) == (kind, code, reason)
    decoded = codec.decode(runs.Outcome, found.encoded(7))  # what the runner makes of it
    assert decoded.kind.value == kind
    if code and not ending.stop_cause and kind != "unknown":
        assert "the end of stderr" in found.detail


def test_the_file_is_complete_or_not_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "outcome.json"
    outcome.write(str(path), failure("working_dir", "é" * 100), 5)
    assert json.loads(path.read_text()) == {
        "kind": "exited",
        "exitCode": 1,
        "reason": "working_dir",
        "detail": "é" * 100,
        "eventCount": 5,
    }
    assert [p.name for p in tmp_path.iterdir()] == ["outcome.json"]
    outcome.write(str(path), Outcome("signalled", signal=9), 0)
    assert json.loads(path.read_text()) == {"kind": "signalled", "signal": 9, "eventCount": 0}


@pytest.mark.parametrize("text", ["é" * 40_000, "x" * 40_000, "\ud800" * 40_000])
def test_a_detail_keeps_its_end(text: str) -> None:
    cut = last_bytes(text + "END", MAX_DETAIL_BYTES)
    assert cut.endswith("END") and len(cut.encode()) <= MAX_DETAIL_BYTES


def test_unknown_signals_have_a_name() -> None:
    assert outcome.signal_name(9) == "SIGKILL" and outcome.signal_name(34 + 3) == "signal 37"
