"""The process of a VMM: as whom it runs, how its end is seen, that it is ended."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import sys

import pytest

from tests.support.capabilities import require
from vm0.microvm.process import Launch, ProcessError, VmmProcess, unprivileged

pytestmark = pytest.mark.host
UID = 1_885_999_000


def shell(text: str, **options: object) -> Launch:
    return Launch(argv=("/bin/sh", "-c", text), **options)  # type: ignore[arg-type]  # the test's keywords


async def test_exit_and_output() -> None:
    process = await VmmProcess.spawn(shell("echo out; echo err >&2; exit 3"))
    assert await process.wait() == 3
    await process.kill()
    assert process.end_text() == "exited with 3"
    assert sorted(process.output.split()) == ["err", "out"]


async def test_kill_is_seen_and_idempotent() -> None:
    process = await VmmProcess.spawn(shell("trap '' TERM; echo on; sleep 1000"))
    assert "runs" in process.end_text()
    await process.kill()
    await process.kill()
    assert (await process.wait(), process.end_text()) == (-signal.SIGKILL, "was killed by SIGKILL")


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ProcessError, match="/no/such/vmm cannot be started") as caught:
        await VmmProcess.spawn(Launch(argv=("/no/such/vmm",)))
    assert "vm0 setup" in caught.value.hint


async def test_it_owns_nothing_and_never_will() -> None:
    require(os.geteuid() == 0, "becoming another user needs root")
    read_end, write_end = os.pipe()
    text = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|THP)' /proc/self/status; echo fds: $(ls /proc/self/fd)"
    try:
        process = await VmmProcess.spawn(
            shell(text, uid=UID, gid=UID, groups=(UID + 1,), descriptors=(write_end,), small_pages=True)
        )
    finally:
        os.close(write_end)
        os.close(read_end)
    await process.wait()
    await process.kill()
    status = dict(line.split(":", 1) for line in process.output.splitlines())
    assert status["Uid"].split() == [str(UID)] * 4 and status["Gid"].split() == [str(UID)] * 4
    assert status["Groups"].split() == [str(UID + 1)]
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"
    assert status["THP_enabled"].strip() == "0"
    own = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    assert own["THP_enabled"].strip() == "1", "we stay as we were"
    assert {int(fd) for fd in status["fds"].split()} <= {0, 1, 2, 3, 4, write_end}  # 3 and 4 are the shell's and ls's


def test_without_another_user_nothing_is_put_in_front() -> None:
    assert unprivileged(Launch(argv=("x",))) == ()


async def test_a_cancelled_spawn_leaves_no_process(tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(marker)!r}).write_text(str(os.getpid())); time.sleep(1000)"
    task = asyncio.create_task(VmmProcess.spawn(Launch(argv=(sys.executable, "-IS", "-c", program))))
    await asyncio.sleep(0)  # it has begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not marker.exists() or not pathlib.Path(f"/proc/{marker.read_text()}").exists()


async def test_a_cgroup_that_is_not_there(tmp_path: pathlib.Path) -> None:
    process = await VmmProcess.spawn(shell("sleep 1000", network=None))
    with pytest.raises(ProcessError, match="no-cgroup"):
        await process.join(tmp_path / "no-cgroup")
    await process.kill()
