"""Several VMs at once, forks, and what is left after many lives."""

from __future__ import annotations

import asyncio
import os
import pathlib

import pytest

from tests.support.host_inventory import host_inventory
from tests.vm.conftest import MEMORY_MIB, NewSandbox
from vm0.sandbox import Reason, SandboxConfig, SandboxOperationError, State
from vm0.sandbox.testing import sh, state_of
from vm0.sandbox_common import cgroups
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm

CYCLES = 50


async def test_eight_at_once(new_sandbox: NewSandbox) -> None:
    """All are restored from one snapshot at the same time; each keeps what is its own, as a user of its own."""
    sandboxes = [await new_sandbox() for _ in range(8)]
    await asyncio.gather(*(sandbox.start() for sandbox in sandboxes))
    for number, sandbox in enumerate(sandboxes):
        await sandbox.write_file("/home/user/mine", str(number).encode())
    seen = await asyncio.gather(*(sandbox.exec(sh("cat mine; hostname")) for sandbox in sandboxes))
    assert [result.stdout.data.decode().split() for result in seen] == [
        [f"{number}{sandbox.sandbox_id}"] for number, sandbox in enumerate(sandboxes)
    ]
    uids = {os.stat(f"/proc/{sandbox.vmm_pid}").st_uid for sandbox in sandboxes}
    assert len(uids) == 8 and 0 not in uids
    namespaces = {os.readlink(f"/proc/{sandbox.vmm_pid}/ns/net") for sandbox in sandboxes}
    assert len(namespaces) == 8 and os.readlink("/proc/self/ns/net") not in namespaces


async def test_fork(factory: QemuSandboxFactory, sandbox: QemuSandbox) -> None:
    """A running sandbox becomes three: memory, disk and processes go with it, then each goes its own way."""
    await sandbox.exec(sh("echo before > file; echo in-memory > /dev/shm/state"))
    await sandbox.exec(sh("setsid -f sh -c 'while :; do date +%s%N > /dev/shm/beat; sleep 0.05; done'"))
    configs = [SandboxConfig(sandbox_id=f"fork-{number}", memory_mib=MEMORY_MIB) for number in range(2)]
    forks = await factory.fork(sandbox, configs)
    assert [fork.sandbox_id for fork in forks] == ["fork-0", "fork-1"]
    for number, each in enumerate([sandbox, *forks]):
        result = await each.exec(sh(f"cat file /dev/shm/state; echo {number} > file; hostname"))
        assert result.stdout.data.decode().split() == ["before", "in-memory", each.sandbox_id]
        beat = await each.exec(sh("a=$(cat /dev/shm/beat); while [ $(cat /dev/shm/beat) = $a ]; do :; done; echo on"))
        assert beat.stdout.data == b"on\n", "a background process did not go on"
    for number, each in enumerate([sandbox, *forks]):
        assert (await each.exec(sh("cat file"))).stdout.data.decode().strip() == str(number)
    ids = [(await each.exec(sh("cat /etc/machine-id"))).stdout.data for each in (sandbox, *forks)]
    assert len(set(ids)) == 3
    # the fork of a fork
    (again,) = await factory.fork(forks[0], [SandboxConfig(sandbox_id="fork-fork", memory_mib=MEMORY_MIB)])
    assert (await again.exec(sh("cat file"))).stdout.data == b"1\n"


async def test_a_fork_with_a_command_under_way_is_refused(factory: QemuSandboxFactory, sandbox: QemuSandbox) -> None:
    process = await sandbox.start_process(sh("sleep 1000"))
    with pytest.raises(SandboxOperationError, match="commands run in it") as caught:
        await factory.fork(sandbox, [SandboxConfig(sandbox_id="never", memory_mib=MEMORY_MIB)])
    assert caught.value.reason is Reason.STATE
    await process.cancel()
    await process.wait()
    assert (await sandbox.exec(sh("echo on"))).stdout.data == b"on\n"


async def test_pause_and_memory(sandbox: QemuSandbox) -> None:
    await sandbox.pause()
    assert state_of(sandbox) is State.PAUSED
    await sandbox.unpause()
    assert state_of(sandbox) is State.RUNNING
    free = "awk '/MemFree/{print $2}' /proc/meminfo"
    before = int((await sandbox.exec(sh(free))).stdout.data)
    await sandbox.set_memory(MEMORY_MIB - 64)
    smaller = sh(f"while [ $({free}) -gt {before - 50_000} ]; do sleep 0.1; done; echo ok")
    assert (await sandbox.exec(smaller)).stdout.data == b"ok\n"


async def test_nothing_is_left_of_many_lives(tmp_path: pathlib.Path, options: QemuOptions) -> None:
    """Processes, namespaces, links, rules, mounts, loop devices, sockets, files: as before."""
    async with QemuSandboxFactory(tmp_path / "qemu", options):
        pass  # what stays of the folder itself: a lock, a cached finding
    before = host_inventory(tmp_path)
    async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
        pool = factory.network_pool
        for number in range(CYCLES):
            sandbox = await factory.create(SandboxConfig(sandbox_id=f"life-{number}", memory_mib=MEMORY_MIB))
            await sandbox.start()
            assert (await sandbox.exec(sh("echo on"))).stdout.data == b"on\n"
            await factory.destroy(sandbox)
    assert host_inventory(tmp_path, pool) - before == set()
    parent = cgroups.writable_parent()
    assert parent is None or list(parent.glob("vm0-*/life-*")) == []
