from __future__ import annotations

import json
import pathlib
import signal

import pytest

from vm0.contracts import codec, runs
from vm0.guest_agent import outcome, session
from vm0.guest_agent.metrics import MetricsSampler, cpu_percent, cpu_times, memory_bytes
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


STAT = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1\n"


def test_cpu() -> None:
    assert cpu_times(STAT) == (850, 1000)
    assert cpu_percent((0, 0), (850, 1000)) == 15.0
    assert cpu_percent((850, 1000), (850, 1000)) == 0.0
    assert cpu_percent((850, 1000), (860, 1030)) == 66.67
    assert cpu_percent((850, 1000), (800, 1030)) == 100.0  # counters of a VM may go back


def test_memory() -> None:
    text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n"
    assert memory_bytes(text) == (600 * 1024, 1000 * 1024)


def test_a_real_sample(tmp_path: pathlib.Path) -> None:
    import threading

    sample = MetricsSampler(str(tmp_path / "m"), 5, threading.Event()).sample()
    assert list(sample) == ["ts", "cpu", "mem_used", "mem_total", "disk_used", "disk_total"]
    assert 0 < sample["mem_used"] < sample["mem_total"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("folder", "encoded"),
    [
        ("/home/user/workspace", "-home-user-workspace"),
        ("/a_b.c/d e", "-a-b-c-d-e"),
        ("/x/é", "-x--"),
    ],
)
def test_the_folder_of_a_project(folder: str, encoded: str) -> None:
    assert session.project_folder("/h", folder) == f"/h/.claude/projects/{encoded}"


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"type": "system", "subtype": "init", "session_id": "a-1"}, "a-1"),
        ({"type": "system", "subtype": "other", "session_id": "a-1"}, None),
        ({"type": "result", "session_id": "a-1"}, None),
        ({"type": "system", "subtype": "init"}, None),
        ({"type": "system", "subtype": "init", "session_id": 7}, None),
        ({"type": "system", "subtype": "init", "session_id": "../../etc/passwd"}, None),
        ({"type": "system", "subtype": "init", "session_id": ".."}, None),
        ({"type": "system", "subtype": "init", "session_id": "a/b"}, None),
    ],
)
def test_session_ids(event: dict[str, object], found: str | None) -> None:
    assert session.session_id_of(event) == found


def test_the_memory_folder_is_linked_once(tmp_path: pathlib.Path) -> None:
    home, memory = tmp_path / "home", tmp_path / "memory"
    assert not session.link_memory(str(home), "/w", str(memory))  # it does not exist
    memory.mkdir()
    assert session.link_memory(str(home), "/w", str(memory))
    link = home / ".claude/projects/-w/memory"
    assert link.is_symlink() and link.resolve() == memory
    assert not session.link_memory(str(home), "/w", str(memory))
