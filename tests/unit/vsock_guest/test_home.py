"""What the guest puts down while it starts a command. The kernel's side of it is in `tests/vm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm0.vsock_guest import containment
from vm0.vsock_guest.containment import Home


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the kernel's file, of which each write is a value of its own."""
    path = tmp_path / "oom_score_adj"
    monkeypatch.setattr(containment, "OOM_SCORE", str(path))
    return path


def test_protection_is_put_down_and_taken_up_again(score: Path) -> None:
    score.write_text("-1000\n")
    home = Home("")
    score.write_text("")
    with home.unprotected():
        assert score.read_text() == "0"
    assert score.read_text() == "0-1000\n"
    with pytest.raises(RuntimeError), home.unprotected():
        raise RuntimeError
    assert score.read_text() == "0-1000\n" * 2


@pytest.mark.parametrize("own", ["0\n", "200\n"])
def test_who_has_no_protection_changes_nothing(score: Path, own: str) -> None:
    score.write_text(own)
    with Home("").unprotected():
        assert score.read_text() == own
    assert score.read_text() == own


def test_without_a_group_there_is_none_to_leave(score: Path) -> None:
    score.write_text("0\n")
    with Home("").left_for(-1):
        pass


def test_a_group_is_left_for_anothers(score: Path, tmp_path: Path) -> None:
    score.write_text("0\n")
    (tmp_path / "guest").mkdir()
    for name in ("guest", "."):
        (tmp_path / name / "cgroup.procs").write_text("")
    home = Home(str(tmp_path))
    with open(tmp_path / "cgroup.procs", "w") as other, home.left_for(other.fileno()):
        assert (tmp_path / "cgroup.procs").read_text() == "0"
        assert (tmp_path / "guest" / "cgroup.procs").read_text() == "0"
    assert (tmp_path / "guest" / "cgroup.procs").read_text() == "00"
