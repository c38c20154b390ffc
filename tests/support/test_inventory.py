"""The leak check sees what a test can leave behind, and lets clean tests pass."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from tests.support.capabilities import require
from tests.support.inventory import diff, take_inventory
from tests.support.leaks import no_leaks

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(60)"]


def test_nothing_happened() -> None:
    assert not diff(take_inventory(), take_inventory())
    assert str(diff(take_inventory(), take_inventory())) == "no difference"


def test_a_child_and_its_pipe_are_seen_until_they_are_gone() -> None:
    before = take_inventory()
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE) as child:
        lines = str(diff(before, take_inventory()))
        assert f"+ processes: pid {child.pid}: " in lines
        assert "+ descriptors: fd " in lines
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert f"+ processes: pid {child.pid} (zombie)" in str(diff(before, take_inventory()))
    assert not diff(before, take_inventory())


@pytest.mark.parametrize("where", ["argv", "environ"])
def test_a_daemon_is_found_by_its_marker(where: str, tmp_path: pathlib.Path) -> None:
    marker = f"marker-{tmp_path.name}-{os.getpid()}"
    tail = [marker] if where == "argv" else []
    # nothing reads its stderr to the end: the daemon holds that open
    start = f"import subprocess; p = subprocess.Popen({[*SLEEP, *tail]!r}, stdout=-1); p.stdout.read(1); print(p.pid)"
    environment = {"WHO": marker} if where == "environ" else {}
    done = subprocess.run([sys.executable, "-c", start], env=environment, stdout=subprocess.PIPE, check=True)
    pid = int(done.stdout)
    try:
        assert f"pid {pid}: " not in str(take_inventory().processes)
        assert f"pid {pid}: " in str(take_inventory(marker=marker).processes)
    finally:
        os.kill(pid, 9)


def test_a_descriptor_that_only_changes_its_number_is_the_same() -> None:
    first = os.open(os.devnull, os.O_RDONLY)
    before = take_inventory()
    second = os.dup(first)
    assert "+ descriptors" in str(diff(before, take_inventory()))
    os.close(first)
    assert not diff(before, take_inventory())
    os.close(second)
    assert "- descriptors" in str(diff(before, take_inventory()))


def test_files_and_sockets_below_the_given_folders(tmp_path: pathlib.Path) -> None:
    before = take_inventory([tmp_path])
    path = tmp_path / "link.sock"
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(path))
        unix.listen()
        lines = str(diff(before, take_inventory([tmp_path]), ["sockets", "files"])).splitlines()
        assert lines == [
            f"+ sockets: tcp port {tcp.getsockname()[1]} (listening)",
            f"+ sockets: unix {path} (listening)",
            f"+ files: {path}",
        ]
    assert str(diff(before, take_inventory([tmp_path]))) == f"+ files: {path}"


def test_cgroups_are_found_by_name(tmp_path: pathlib.Path) -> None:
    (tmp_path / "system.slice" / "vm0-7").mkdir(parents=True)
    assert list(take_inventory(cgroup_root=tmp_path).cgroups) == [str(tmp_path / "system.slice" / "vm0-7")]


def test_threads() -> None:
    before = take_inventory()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="a-reader")
    thread.start()
    assert str(diff(before, take_inventory())) == "+ threads: a-reader"
    release.set()
    thread.join()
    assert not diff(before, take_inventory())


async def test_tasks() -> None:
    before = take_inventory()
    task = asyncio.create_task(asyncio.Event().wait(), name="a-waiter")
    assert str(diff(before, take_inventory())).startswith("+ tasks: a-waiter: <coroutine object Event.wait")
    task.cancel()
    await asyncio.wait([task])
    assert not diff(before, take_inventory())


def test_a_leaked_child_fails_the_block() -> None:
    child = None
    try:
        with pytest.raises(AssertionError, match=r"\+ processes: pid"), no_leaks(settle_s=0.1):
            child = subprocess.Popen(SLEEP)
    finally:
        assert child is not None
        child.kill()
        child.wait()


def test_a_child_that_is_about_to_exit_is_waited_for() -> None:
    with no_leaks():
        child = subprocess.Popen(SLEEP)
        killer = threading.Timer(0.2, child.kill)
        reaper = threading.Thread(target=child.wait)
        killer.start()
        reaper.start()
    killer.join()
    reaper.join()


def test_an_error_in_the_block_is_not_hidden_by_a_leak() -> None:
    with pytest.raises(KeyError), no_leaks(settle_s=0):
        left, right = os.pipe()
        raise KeyError
    os.close(left)
    os.close(right)


@pytest.mark.host
async def test_marked_tests_pass_when_they_clean_up() -> None:
    child = await asyncio.create_subprocess_exec(*SLEEP, stdout=asyncio.subprocess.PIPE)
    child.kill()
    await child.communicate()


def test_marked_tests_fail_when_they_do_not(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    pytester.makeini("[pytest]\nmarkers = host: x\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest("""
        import tests.support.leaks
        from tests.conftest import _leak_check_of_marked_tests, leak_check
        tests.support.leaks.SETTLE_S = 0
    """)
    pytester.makepyfile("""
        import os, pytest

        @pytest.mark.host
        def test_marked():
            os.dup(0)

        def test_unmarked():
            os.dup(0)
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*+ descriptors: fd *"])


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_capability(ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    require(True, "is there")
    with pytest.raises(outcome, match="no KVM"):
        require(False, "no KVM")
