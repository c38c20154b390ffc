"""The spool: a crash at any write leaves the old record or the new one; what is no record is set aside."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import stat
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.contracts.codec import ContractError
from vm0.contracts.runner import ReleaseRequest
from vm0.contracts.runs import Isolation, Outcome, OutcomeKind
from vm0.contracts.webhooks import CompleteRequest
from vm0.runner.recovery import plan_report
from vm0.runner.spool import ORDER, Journal, JournalRecord, JournalState, Spool

RUN_ID = "11111111-2222-4333-8444-555555555555"
COMPLETE = CompleteRequest(run_id=RUN_ID, epoch=1, outcome=Outcome(kind=OutcomeKind.EXITED, exit_code=0, detail="ü\n"))
RELEASE = ReleaseRequest(runner_id=RUN_ID, epoch=1, reason="not_started_start")
RECORDS = {
    "claimed": JournalRecord(run_id=RUN_ID, epoch=1),
    "agent_started": JournalRecord(run_id=RUN_ID, epoch=1, state=JournalState.AGENT_STARTED),
    "completed": JournalRecord(run_id=RUN_ID, epoch=1, state=JournalState.REPORTED, complete=COMPLETE),
    "released": JournalRecord(run_id=RUN_ID, epoch=1, state=JournalState.REPORTED, release=RELEASE),
}
STEPS = ["open", "write", "fsync", "replace"]


class Crash(BaseException):
    """The process is gone: not even clean-up code runs."""


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> Spool:
    found = Spool(tmp_path / "spool")
    found.prepare()
    return found


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_survives_as_it_was(spool: Spool, record: JournalRecord) -> None:
    journal = spool.journal(RUN_ID, 1)
    journal.write(record)
    assert spool.left_over() == ([record], [])
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    journal.remove()
    journal.remove()
    assert spool.left_over() == ([], [])


def crash_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end before this system call; of a write, half has happened."""

    def patched(name: str, before: Callable[..., Any]) -> None:
        monkeypatch.setattr(os, name, before)

    def crash(*_: Any, **__: Any) -> Any:
        raise Crash

    real_open = os.open
    match step:
        case "open":
            patched("open", crash)
        case "write":
            patched("fsync", crash)

            def half(path: Any, flags: int, mode: int = 0o777) -> int:
                descriptor = real_open(path, flags, mode)
                if flags & os.O_CREAT:
                    os.write(descriptor, b'{"runId": "1111')
                    os.close(descriptor)
                    raise Crash
                return descriptor

            patched("open", half)
        case _:
            patched(step, crash)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("old", "new"),
    [(None, "claimed"), ("claimed", "agent_started"), ("agent_started", "completed"), ("claimed", "released")],
)
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, step: str, old: str | None, new: str
) -> None:
    journal = spool.journal(RUN_ID, 1)
    if old:
        journal.write(RECORDS[old])
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(step, patch)
        journal.write(RECORDS[new])
    restarted = Spool(spool.folder)
    restarted.prepare()
    records, bad = restarted.left_over()
    assert records in ([RECORDS[old]] if old else [], [RECORDS[new]])
    assert bad == [] and list(spool.folder.glob("*.part")) == []


def test_a_full_disk_keeps_the_old_record(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = spool.journal(RUN_ID, 1)
    journal.write(RECORDS["claimed"])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.write(RECORDS["agent_started"])
    assert spool.left_over() == ([RECORDS["claimed"]], [])
    journal.write(RECORDS["completed"])
    assert spool.left_over() == ([RECORDS["completed"]], [])


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.sampled_from(sorted(RECORDS)), max_size=8))
def test_states_only_move_forward(order: list[str]) -> None:
    """A cancelled caller's write may come late; it must not undo a later state."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(pathlib.Path(folder), RUN_ID, 1)
        for name in order:
            journal.write(RECORDS[name])
        records, _ = Spool(pathlib.Path(folder)).left_over()
        reached = max((ORDER.index(RECORDS[name].state) for name in order), default=None)
        assert [ORDER.index(record.state) for record in records] == ([] if reached is None else [reached])


def test_a_removed_journal_stays_removed(spool: Spool) -> None:
    journal = spool.journal(RUN_ID, 1)
    journal.write(RECORDS["completed"])
    journal.remove()
    late = threading.Thread(target=journal.write, args=(RECORDS["completed"],))
    late.start()
    late.join()
    assert spool.left_over() == ([], [])


def test_two_claims_of_a_run_are_two_records(spool: Spool) -> None:
    second = dataclasses.replace(RECORDS["claimed"], epoch=2)
    spool.journal(RUN_ID, 1).write(RECORDS["completed"])
    spool.journal(RUN_ID, 2).write(second)
    assert spool.left_over() == ([RECORDS["completed"], second], [])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"runId": "x", "epoch": 1}', b"[" * 100_000])
def test_what_is_no_record_is_set_aside(spool: Spool, content: bytes) -> None:
    path = spool.folder / f"{RUN_ID}.1.json"
    path.write_bytes(content)
    records, bad = spool.left_over()
    assert records == [] and [found.read_bytes() for found in bad] == [content]
    assert spool.left_over() == ([], [])


def test_a_record_under_a_wrong_name_is_set_aside(spool: Spool) -> None:
    spool.journal(RUN_ID, 7).write(RECORDS["claimed"])
    records, bad = spool.left_over()
    assert records == [] and len(bad) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"state": JournalState.REPORTED},
        {"complete": COMPLETE},
        {"state": JournalState.REPORTED, "complete": COMPLETE, "release": RELEASE},
    ],
)
def test_a_report_goes_with_its_state(fields: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        JournalRecord(run_id=RUN_ID, epoch=1, **fields)


def test_what_a_restart_reports() -> None:
    def plan(name: str) -> JournalRecord:
        return plan_report(RECORDS[name], RUN_ID, Isolation.PROCESS)

    claimed, started = plan("claimed"), plan("agent_started")
    assert claimed.release is not None and claimed.release.reason == "runner_restarted"
    assert started.complete is not None and started.complete.outcome is not None
    assert started.complete.outcome.kind is OutcomeKind.LOST and started.complete.outcome.reason == "runner_crashed"
    assert plan("completed") == RECORDS["completed"] and plan("released") == RECORDS["released"]
