"""What a real kernel adds to `tests/host/guest_init`: controllers, the memory killer, disks, terminals, a crash."""

from __future__ import annotations

import asyncio
import time

import pytest

from vm0.sandbox import Ended, ExecRequest, PtySize, Reason, SandboxOperationError
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm

ENDPOINT = "$(cat /proc/1/task/1/children | cut -d' ' -f1)"


async def said(sandbox: QemuSandbox, text: str, **options: object) -> str:
    result = await sandbox.exec(sh(text, **options))
    assert result.exit_code == 0, result
    return result.stdout.data.decode().strip()


async def test_its_mounts(booted: QemuSandbox) -> None:
    """After a boot of its own; the overlay's disk and the root below it are in nobody's reach."""
    rows = [line.split() for line in (await said(booted, "cat /proc/mounts")).splitlines()]
    assert [(row[1], row[2]) for row in rows] == [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/run", "tmpfs"),
        ("/sys/fs/cgroup", "cgroup2"),
    ]
    assert await said(booted, "touch /tmp/x /var/tmp/x ~/x /dev/shm/x && bash -c 'cat <(echo yes)'") == "yes"
    assert await said(booted, "sudo -n true 2>&1 && touch /etc/x && ls /etc/x", user="root") == "/etc/x"


@pytest.mark.parametrize("how", ["user", "root", "terminal"])
async def test_no_command_inherits_the_protection(sandbox: QemuSandbox, how: str) -> None:
    request = sh(
        "cat /proc/self/oom_score_adj; cat /proc/self/cgroup",
        user="root" if how == "root" else "",
        pty=PtySize(rows=24, columns=80) if how == "terminal" else None,
    )
    score, group = (await sandbox.exec(request)).stdout.data.split()
    assert score == b"0" and group.startswith(b"0::/vm0/exec-")
    own = await said(sandbox, f"cat /proc/1/oom_score_adj /proc/{ENDPOINT}/oom_score_adj /proc/{ENDPOINT}/cgroup")
    assert own.split() == ["-1000", "-1000", "0::/vm0/guest"]


async def test_commands_have_a_limit_together_and_the_endpoint_has_its_own(sandbox: QemuSandbox) -> None:
    text = "cd /sys/fs/cgroup/vm0; cat memory.max guest/memory.min cgroup.subtree_control; grep MemTotal /proc/meminfo"
    limit, kept, *controllers, _, total, _ = (await said(sandbox, text)).split()
    assert 0.5 * int(total) * 1024 < int(limit) < 0.95 * int(total) * 1024
    assert (int(kept), controllers) == (16 * 1024 * 1024, ["cpu", "memory", "pids"])


async def test_a_command_that_eats_all_memory_is_ended_soon(sandbox: QemuSandbox) -> None:
    """Page by page, so that nothing refuses the whole; the endpoint answers all the while."""
    eating = asyncio.create_task(sandbox.exec(ExecRequest(argv=("tail", "/dev/zero"), timeout_s=100)))
    slowest = 0.0
    while not eating.done():
        begun = time.monotonic()
        await sandbox.stat("/")
        slowest = max(slowest, time.monotonic() - begun)
        await asyncio.sleep(0.05)
    result = await eating
    assert (result.ended, result.signal) == (Ended.SIGNALLED, 9), result
    assert slowest < 5
    assert await said(sandbox, "echo alive") == "alive"


async def test_the_environment_of_the_image(booted: QemuSandbox) -> None:
    lines = dict(line.split("=", 1) for line in (await said(booted, "env")).splitlines())
    assert lines["HOME"] == "/home/user" and lines["LANG"] == "C.UTF-8"
    asked = await said(booted, "echo $LANG $X", env={"LANG": "C", "X": "1"})
    assert asked == "C 1"


async def test_a_fork_bomb_is_ended_with_its_command(sandbox: QemuSandbox) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000"
    result = await sandbox.exec(sh(bomb, timeout_s=3, grace_s=0.5, stderr_limit=1000))
    assert result.ended is Ended.TIMED_OUT
    assert await said(sandbox, "echo alive") == "alive"
    assert await said(sandbox, "ls -d /sys/fs/cgroup/vm0/exec-* | wc -l") == "1", "of the command that asks"


async def test_commands_may_open_many_files(sandbox: QemuSandbox) -> None:
    assert await said(sandbox, "ulimit -Sn; ulimit -Hn") == "65536\n524288"


async def test_an_endpoint_that_dies_is_a_crash_at_once(sandbox: QemuSandbox) -> None:
    begun = time.monotonic()
    with pytest.raises(SandboxOperationError) as caught:
        await sandbox.exec(sh(f"sleep 1000 & kill -9 {ENDPOINT}; sleep 1000", user="root", timeout_s=None))
    assert caught.value.reason is Reason.CRASHED
    assert time.monotonic() - begun < 20
    assert "guest endpoint died" in await sandbox.crashed()
