"""Pool indices: one holder each, by flock, whoever the others are."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vm0.microvm.netns.errors import NamespaceError
from vm0.microvm.netns.leases import LeaseDirectory

HOLDER = """
import pathlib, sys, time
from vm0.microvm.netns.leases import LeaseDirectory
leases = LeaseDirectory(pathlib.Path(sys.argv[1]))
with leases.locked():
    lease = leases.take()
print(lease.pool, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "run" / "netns"


@pytest.fixture
def leases(directory: pathlib.Path) -> LeaseDirectory:
    return LeaseDirectory(directory)


@pytest.fixture
def holder(directory: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has index 0."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        yield process
        process.kill()


def test_each_takes_the_lowest_free_index(leases: LeaseDirectory, directory: pathlib.Path) -> None:
    with leases.locked():
        first, second = leases.take(), leases.take()
        assert (first.pool, second.pool) == (0, 1)
        assert leases.held() == {0, 1}
        leases.release(first)
        again = leases.take()
        assert again.pool == 0
        for lease in (again, second):
            leases.release(lease)
        assert leases.held() == set()
    assert list(directory.iterdir()) == []


def test_files_name_their_owner_and_are_private(leases: LeaseDirectory, directory: pathlib.Path) -> None:
    with leases.locked():
        lease = leases.take()
        assert lease.path.read_text() == f"{os.getpid()}\n"
        assert lease.path.stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700
        assert directory.parent.stat().st_mode & 0o777 == 0o755, "VMMs of other users have things there"
        leases.release(lease)


def test_a_directory_that_others_may_enter_is_closed(leases: LeaseDirectory, directory: pathlib.Path) -> None:
    directory.mkdir(parents=True, mode=0o755)
    with leases.locked():
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_symbolic_link_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "netns").symlink_to("elsewhere")
    with (
        pytest.raises(NamespaceError, match="not a directory of ours") as caught,
        LeaseDirectory(tmp_path / "netns").locked(),
    ):
        pass
    assert caught.value.hint


def test_another_process_keeps_its_index_until_it_is_killed(
    leases: LeaseDirectory, directory: pathlib.Path, holder: subprocess.Popen[str]
) -> None:
    with leases.locked():
        assert leases.held() == {0}
        lease = leases.take()
        assert lease.pool == 1
        leases.release(lease)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with leases.locked():
        assert leases.held() == set()
        assert list(directory.iterdir()) == [], "the file of the dead goes with the look at it"
        lease = leases.take()
        assert lease.pool == 0
        leases.release(lease)


def test_when_all_are_taken_the_error_says_what_to_do(leases: LeaseDirectory, directory: pathlib.Path) -> None:
    with leases.locked():
        taken = [leases.take() for _ in range(64)]
        with pytest.raises(NamespaceError, match="all 64 network pools of this host are in use") as caught:
            leases.take()
        assert str(directory) in caught.value.hint
        for lease in taken:
            leases.release(lease)
