"""What can go wrong with a VM, for real: each is seen at once, has a reason, and leaves the rest alone."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import time

import pytest

from tests.vm.conftest import MEMORY_MIB, NewSandbox
from vm0.image import Image
from vm0.sandbox import (
    Ended,
    Reason,
    SandboxConfig,
    SandboxOperationError,
    StartError,
    State,
)
from vm0.sandbox.testing import sh, state_of
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory, vm
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm

AT_ONCE_S = 5.0  # far below every time limit that would end a wait otherwise


async def test_qemu_is_killed_in_the_middle_of_a_command(sandbox: QemuSandbox) -> None:
    process = await sandbox.start_process(sh("echo on; sleep 1000", stdout_limit=None, timeout_s=None))
    assert await process.stdout.read() == b"on\n"
    waiting = asyncio.create_task(process.wait())
    os.kill(sandbox.vmm_pid, signal.SIGKILL)
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(SandboxOperationError) as caught:
            await waiting
        why = await sandbox.crashed()
    assert caught.value.reason is Reason.CRASHED
    assert "QEMU was killed by SIGKILL" in why
    assert state_of(sandbox) is State.CRASHED


async def test_the_guests_kernel_panics(sandbox: QemuSandbox) -> None:
    panic = asyncio.create_task(sandbox.exec(sh("echo c > /proc/sysrq-trigger", user="root", timeout_s=None)))
    async with asyncio.timeout(30):
        why = await sandbox.crashed()
        with pytest.raises(SandboxOperationError) as caught:
            await panic
    assert caught.value.reason is Reason.CRASHED
    assert "QEMU exited" in why and "Kernel panic" in why


async def test_the_guest_powers_off_by_itself(sandbox: QemuSandbox) -> None:
    await asyncio.gather(
        sandbox.exec(sh("kill -TERM 1", user="root", timeout_s=None)), sandbox.crashed(), return_exceptions=True
    )
    assert "QEMU exited with 0" in await sandbox.crashed()


async def test_the_guest_runs_out_of_memory(sandbox: QemuSandbox) -> None:
    """What ate it is killed; the guest endpoint and everything else go on."""
    bystander = await sandbox.start_process(sh("echo on; sleep 1000", stdout_limit=None, timeout_s=None))
    assert await bystander.stdout.read() == b"on\n"
    result = await sandbox.exec(sh("exec python3 -c 'x = bytearray(1 << 30); print(len(x))'", timeout_s=120))
    assert (result.ended, result.signal) == (Ended.SIGNALLED, signal.SIGKILL) or result.exit_code == 1, result
    assert (await sandbox.exec(sh("echo alive"))).stdout.data == b"alive\n"
    await bystander.cancel()
    assert (await bystander.wait()).ended is Ended.CANCELLED


async def test_the_guests_disk_is_full(new_sandbox: NewSandbox) -> None:
    sandbox = await new_sandbox(disk_mib=64)
    await sandbox.start()
    result = await sandbox.exec(sh("cat /dev/zero > big", timeout_s=200, merge_stderr=True))
    assert result.exit_code == 1 and b"No space left" in result.stdout.data
    with pytest.raises(SandboxOperationError) as caught:
        await sandbox.write_file("/home/user/other", bytes(1 << 20))
    assert (caught.value.reason, caught.value.code) == (Reason.GUEST, "no_space")
    assert (await sandbox.exec(sh("rm big && echo freed"))).stdout.data == b"freed\n"
    await sandbox.write_file("/home/user/other", bytes(1 << 20))


async def test_a_machine_that_never_says_ready(
    tmp_path: pathlib.Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs early in its boot: the start fails at its step, within its limit, with what the console said."""
    monkeypatch.setattr(vm, "BOOT_S", 3.0)
    options = QemuOptions(image=image, memory_mib=MEMORY_MIB)
    async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
        sandbox = await factory.create(SandboxConfig(sandbox_id="deaf", memory_mib=MEMORY_MIB))
        begun = time.monotonic()
        with pytest.raises(StartError, match=r"step boot: not done within 3 s") as caught:
            await sandbox.start()
        assert time.monotonic() - begun < 3 + AT_ONCE_S
        assert caught.value.step == "boot"
        assert sandbox.state is State.STOPPED
        await factory.destroy(sandbox)
        assert list((tmp_path / "qemu" / "sandboxes").iterdir()) == []


async def test_a_machine_whose_init_fails(tmp_path: pathlib.Path, image: Image) -> None:
    """Its disk is no file system: the guest says so on its console and ends, and so does the start, at once."""
    options = QemuOptions(image=image, memory_mib=MEMORY_MIB)
    async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
        sandbox = await factory.create(SandboxConfig(sandbox_id="diskless", memory_mib=MEMORY_MIB))
        assert isinstance(sandbox, QemuSandbox)
        sandbox.seat.disk.write_bytes(bytes(1 << 20))
        with pytest.raises(StartError, match="init failed") as caught:
            await sandbox.start()
        assert "QEMU exited" in str(caught.value)


async def test_a_qemu_that_does_not_start(tmp_path: pathlib.Path, image: Image) -> None:
    options = QemuOptions(image=image, memory_mib=MEMORY_MIB)
    async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
        sandbox = await factory.create(SandboxConfig(sandbox_id="huge", memory_mib=1 << 40))
        with pytest.raises(StartError) as caught:
            await sandbox.start()
        assert caught.value.step in ("open", "spawn", "monitor") and sandbox.state is State.STOPPED
