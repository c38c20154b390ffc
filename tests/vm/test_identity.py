"""Two clones of one snapshot are two machines: they share no secret, no name and no random number."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.vm.conftest import NewSandbox
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm

# Everything of a machine that must differ between two; `getrandom` is asked by a fresh process and by the shell's own.
QUESTIONS = {
    "hostname": "hostname",
    "etc-hostname": "cat /etc/hostname",
    "machine-id": "cat /etc/machine-id",
    "urandom": "head -c 32 /dev/urandom | od -An -tx1",
    "getrandom": "python3 -c 'import os; print(os.getrandom(32).hex())'",
    "uuid": "cat /proc/sys/kernel/random/uuid",
}


async def answers(sandbox: QemuSandbox) -> dict[str, str]:
    found = {}
    for name, command in QUESTIONS.items():
        result = await sandbox.exec(sh(command))
        assert result.exit_code == 0, (name, result)
        found[name] = result.stdout.data.decode().strip()
    return found


async def test_clones_differ(new_sandbox: NewSandbox) -> None:
    clones = [await new_sandbox() for _ in range(2)]
    for clone in clones:
        await clone.start()
        assert "load" in clone.start_seconds, "it was not restored"
    first, second = [await answers(clone) for clone in clones]
    assert [name for name in QUESTIONS if first[name] == second[name]] == []
    assert first["hostname"] == first["etc-hostname"] == clones[0].sandbox_id
    assert len(first["machine-id"]) == 32


async def test_the_boot_token_is_another_and_no_user_can_read_it(sandbox: QemuSandbox) -> None:
    """The token of the command line was the golden VM's; what counts is what the restore gave."""
    result = await sandbox.exec(sh("ls -ld /run/vm0 2>&1; cat /run/vm0/* 2>&1; true"))
    assert b"Permission denied" in result.stdout.data or b"No such file" in result.stdout.data
    root = await sandbox.exec(sh("cat /run/vm0/token 2>/dev/null | od -An -tx1 | tr -d ' \\n'", user="root"))
    golden = sandbox.kernel_parameters.partition("vm0.token=")[2].split()[0]
    assert golden and root.stdout.data.decode() != golden


async def test_the_clock_is_the_hosts(sandbox: QemuSandbox) -> None:
    before = time.time()
    seen = float((await sandbox.exec(sh("date +%s.%N"))).stdout.data)
    assert before - 1 <= seen <= time.time() + 1


async def test_the_clock_after_a_pause(sandbox: QemuSandbox) -> None:
    await sandbox.pause()
    await asyncio.sleep(2)  # the pause itself is what is tested
    await sandbox.unpause()
    before = time.time()
    seen = float((await sandbox.exec(sh("date +%s.%N"))).stdout.data)
    assert before - 1 <= seen <= time.time() + 1
