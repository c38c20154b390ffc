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


async def test_no_user_can_read_the_token(sandbox: QemuSandbox) -> None:
    """What the command line shows was the golden VM's. The one that counts came with the restore, and is in no file."""
    golden = sandbox.kernel_parameters.partition("vm0.token=")[2].split()[0]
    text = (
        "tr ' ' '\\n' < /proc/cmdline | sed -n 's/^vm0.token=//p'; ls /run/vm0; "
        "for fd in /proc/1/fd /proc/$PPID/fd /proc/$PPID/mem; do ls $fd/ >/dev/null 2>&1 || echo closed; done"
    )
    shown, *rest = (await sandbox.exec(sh(text))).stdout.data.decode().split()
    assert len(golden) == 64 and shown == golden
    assert rest == ["hostname", "hosts", "machine-id", "resolv.conf", "closed", "closed", "closed"]


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
