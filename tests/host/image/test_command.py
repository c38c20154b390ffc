"""Programs of a build: bounded in time, apart from the machine, and gone with all that they started."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from tests.host.image.conftest import mounts_below
from tests.support.capabilities import require
from vm0.image.command import SHOWN_LINES, Commands
from vm0.image.errors import BuildError

pytestmark = pytest.mark.host


@pytest.fixture
def commands(tmp_path: pathlib.Path) -> Commands:
    require(os.geteuid() == 0, "namespaces need root")
    return Commands(log=tmp_path / "log")


def alive(mark: str) -> list[str]:
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in entry.read_bytes().split(b"\0"):
                found.append(entry.parent.name)
        except OSError:  # it ended
            continue
    return found


def wait_until_gone(mark: str) -> None:
    """The kernel ends them when the first process of their namespace has gone, a moment later."""
    deadline = time.monotonic() + 10
    while alive(mark):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_an_answer_and_the_log(commands: Commands) -> None:
    assert commands.run(shell("echo out; echo err >&2"), what="asking", timeout_s=30, answer=True) == b"out\n"
    assert commands.run(shell("echo out; echo err >&2"), what="doing", timeout_s=30) == b""
    lines = commands.log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("[")] == ["err", "out", "err"]
    assert sum("$ setpriv" in line and "sh -c 'echo out; echo err >&2'" in line for line in lines) == 2


def test_a_failure_shows_the_last_lines(commands: Commands) -> None:
    with pytest.raises(BuildError) as caught:
        commands.run(shell("seq 100; exit 7"), what="counting", timeout_s=30, hint="count less")
    said = str(caught.value).splitlines()
    assert said[0] == "counting: exit code 7"
    assert said[1:-1] == [f"  | {number}" for number in range(101 - SHOWN_LINES, 101)]
    assert said[-1] == f"  log: {commands.log}"
    assert (caught.value.hint, caught.value.log) == ("count less", str(commands.log))


def test_what_a_program_before_it_said_is_not_shown(commands: Commands) -> None:
    commands.run(shell("echo of the other"), what="first", timeout_s=30)
    with pytest.raises(BuildError) as caught:
        commands.run(shell("exit 1"), what="second", timeout_s=30)
    assert "of the other" not in str(caught.value)


def test_a_program_that_is_missing(commands: Commands) -> None:
    with pytest.raises(BuildError, match="no-such-program"):
        commands.run(["no-such-program"], what="trying", timeout_s=30)


def test_the_time_limit_ends_all_that_it_started(commands: Commands) -> None:
    """One that has left its session and ignores signals too."""
    mark = f"3{os.getpid()}"
    script = f"trap '' TERM HUP; setsid sh -c 'trap \"\" TERM HUP; sleep {mark}; true' & sleep {mark}; true"
    started = time.monotonic()
    with pytest.raises(BuildError, match="not done after 1 s"):
        commands.run(shell(script), what="waiting", timeout_s=1)
    assert time.monotonic() - started < 20
    wait_until_gone(mark)


def test_what_stays_behind_ends_with_the_program(commands: Commands) -> None:
    mark = f"4{os.getpid()}"
    commands.run(shell(f"setsid sleep {mark} >/dev/null 2>&1 &"), what="leaving", timeout_s=30)
    wait_until_gone(mark)


def test_mounts_are_its_own(commands: Commands, tmp_path: pathlib.Path) -> None:
    (tmp_path / "at").mkdir()
    commands.run(shell(f"mount -t tmpfs x {tmp_path}/at && touch {tmp_path}/at/inside"), what="mounting", timeout_s=30)
    assert mounts_below(tmp_path) == [] and list((tmp_path / "at").iterdir()) == []


@pytest.mark.parametrize("offline", [True, False])
def test_offline_is_without_a_network(tmp_path: pathlib.Path, offline: bool) -> None:
    require(os.geteuid() == 0, "namespaces need root")
    commands = Commands(log=tmp_path / "log", offline=offline)
    namespace = commands.run(["readlink", "/proc/self/ns/net"], what="looking", timeout_s=30, answer=True)
    assert (namespace.decode().strip() != os.readlink("/proc/self/ns/net")) == offline


def test_the_callers_environment_stays_outside(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    fresh = Commands(log=commands.log)
    assert b"secret" not in fresh.run(["env"], what="looking", timeout_s=30, answer=True)
