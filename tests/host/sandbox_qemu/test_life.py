"""Everything in the life of a sandbox, with a VMM that takes no time: namespaces, taps, disks and cgroups are real."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib

import pytest

from tests.host.sandbox_qemu.conftest import BOOTED_MIB, SIZE_MIB, NewFactory, config
from tests.host.sandbox_qemu.leftovers import Leftovers
from tests.support.fake_qemu.installation import FakeQemu
from vm0.sandbox import ExecRequest, IsolationTier, Sandbox, SandboxError, SandboxOperationError, State
from vm0.sandbox.testing import state_of
from vm0.sandbox_common import cgroups
from vm0.sandbox_qemu import QemuSandboxFactory, accelerator
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.host

BOOT_STEPS = ["tap", "open", "spawn", "monitor", "cgroup", "boot", "identity"]
RESTORE_STEPS = ["tap", "open", "spawn", "monitor", "cgroup", "load", "continue", "identity", "resume"]


async def facts(sandbox: Sandbox) -> dict[str, str]:
    """What its guest knows."""
    found: dict[str, str] = json.loads((await sandbox.exec(ExecRequest(argv=("facts",)))).stdout.data)
    return found


async def started(factory: QemuSandboxFactory, name: str = "sandbox", **changes: object) -> QemuSandbox:
    sandbox = await factory.create(config(name, **changes))
    assert isinstance(sandbox, QemuSandbox)
    await sandbox.start()
    return sandbox


@pytest.mark.parametrize(("memory_mib", "steps"), [(SIZE_MIB, RESTORE_STEPS), (BOOTED_MIB, BOOT_STEPS)])
async def test_a_life(factory: QemuSandboxFactory, leftovers: Leftovers, memory_mib: int, steps: list[str]) -> None:
    sandbox = await started(factory, memory_mib=memory_mib)
    assert list(sandbox.start_seconds) == steps
    assert (await facts(sandbox))["hostname"] == "sandbox"
    status = pathlib.Path(f"/proc/{sandbox.vmm_pid}/status").read_text()
    assert f"Uid:\t{sandbox.seat.uid}\t" in status and os.stat(sandbox.seat.disk).st_uid == sandbox.seat.uid
    if cgroups.writable_parent() is not None:
        assert sandbox.seat.cgroup is not None
        assert str(sandbox.vmm_pid) in (sandbox.seat.cgroup / "cgroup.procs").read_text().split()

    await sandbox.set_memory(SIZE_MIB // 2)
    await sandbox.pause()
    answer = asyncio.create_task(sandbox.exec(ExecRequest(argv=("true",))))
    with pytest.raises(SandboxError, match="while paused"):
        await sandbox.set_memory(SIZE_MIB)
    assert not answer.done() and state_of(sandbox) is State.PAUSED
    await sandbox.unpause()
    assert (await answer).exit_code == 0
    assert await sandbox.quiesce() == 0
    with pytest.raises(SandboxOperationError, match="no new work"):
        await sandbox.exec(ExecRequest(argv=("true",)))
    await sandbox.resume()
    await sandbox.stop()
    assert state_of(sandbox) is State.STOPPED
    assert leftovers.vmms() == set()
    await factory.destroy(sandbox)
    await factory.destroy(sandbox)
    await leftovers.assert_none()


async def test_a_snapshot_is_made_once_and_its_clones_differ(new_factory: NewFactory, tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    for name in ("one", "two"):
        factory = new_factory(name, snapshots=tmp_path / "snapshots")
        factory._say = said.append
        async with factory:
            sandboxes = [await started(factory, f"{name}-{number}") for number in range(2)]
            known = [await facts(sandbox) for sandbox in sandboxes]
            assert len({guest["ram_id"] for guest in known}) == 1, "they come from one golden machine"
            for what in ("token", "machine_id", "hostname"):
                assert len({guest[what] for guest in known}) == 2, what
            key = factory.describe()["start"].removeprefix("snapshot ")
            assert [path.name for path in (tmp_path / "snapshots").iterdir() if path.is_dir()] == [key]
    assert said.count("booting the golden VM") == 1 and "warming up: warm-up" in said


async def test_without_snapshots_everything_boots(new_factory: NewFactory) -> None:
    async with new_factory(snapshots=None) as factory:
        assert factory.describe()["start"] == "cold boot"
        sandboxes = await asyncio.gather(*(factory.create(config(f"s-{number}")) for number in range(4)))
        await asyncio.gather(*(sandbox.start() for sandbox in sandboxes))
        assert len({(await facts(sandbox))["ram_id"] for sandbox in sandboxes}) == 4


async def test_forks(factory: QemuSandboxFactory, leftovers: Leftovers) -> None:
    sandbox = await started(factory)
    forks = await factory.fork(sandbox, [config("fork-a"), config("fork-b")])
    (child,) = await factory.fork(forks[0], [config("fork-of-fork")])
    known = [await facts(each) for each in (sandbox, *forks, child)]
    assert len({guest["ram_id"] for guest in known}) == 1
    assert len({guest["token"] for guest in known}) == 4
    assert [guest["hostname"] for guest in known] == ["sandbox", "fork-a", "fork-b", "fork-of-fork"]
    for each in (sandbox, *forks, child):
        await factory.destroy(each)
    await leftovers.assert_none()


async def test_a_fork_is_refused_while_commands_run_and_for_names_that_are_taken(factory: QemuSandboxFactory) -> None:
    sandbox = await started(factory)
    waiting = asyncio.create_task(sandbox.exec(ExecRequest(argv=("wait",))))
    with pytest.raises(SandboxOperationError, match="commands run in it"):
        while True:  # until the command has reached the guest
            for fork in await factory.fork(sandbox, [config("fork")]):
                await factory.destroy(fork)
    waiting.cancel()
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
    other = await started(factory, "other")
    for configs in ([config("other")], [config("sandbox")], [config("twin"), config("twin")]):
        with pytest.raises(SandboxError, match="exists already"):
            await factory.fork(sandbox, configs)
    assert (await facts(other))["hostname"] == "other", "a fork of its name did it harm"
    assert (await facts(sandbox))["hostname"] == "sandbox"
    await started(factory, "twin")


async def test_names_that_are_taken(factory: QemuSandboxFactory) -> None:
    results = await asyncio.gather(*(factory.create(config("same")) for _ in range(3)), return_exceptions=True)
    (sandbox,) = [result for result in results if isinstance(result, QemuSandbox)]
    assert all("exists already" in str(result) for result in results if result is not sandbox)
    await sandbox.start()
    assert (await facts(sandbox))["hostname"] == "same"
    for bad in ("", "a/b", "..", "x" * 65):
        with pytest.raises(SandboxError, match="is not 1 to 64"):
            await factory.create(config(bad))


async def test_a_sandbox_that_was_destroyed_has_no_more_to_say(factory: QemuSandboxFactory) -> None:
    sandbox = await started(factory)
    await factory.destroy(sandbox)
    with pytest.raises(SandboxError):
        await sandbox.exec(ExecRequest(argv=("true",)))
    with pytest.raises(SandboxError):
        _ = sandbox.vmm_pid
    again = await started(factory)
    assert (await facts(again))["hostname"] == "sandbox"


@pytest.mark.parametrize(("mode", "group"), [(0o666, 0), (0o660, 1_885_997_000)])
async def test_on_a_host_whose_kvm_works(
    new_factory: NewFactory,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeQemu,
    mode: int,
    group: int,
) -> None:
    """The probe guest boots with it, so VMs have it, and the group that may open it."""
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    os.chown(device, 0, group)
    monkeypatch.setattr(accelerator, "KVM", device)
    async with new_factory(accelerator="", snapshots=tmp_path / "snapshots") as factory:
        assert factory.isolation is IsolationTier.HARDWARE_VM
        sandbox = await started(factory)
        groups = "" if group == 0 else str(group)
        status = pathlib.Path(f"/proc/{sandbox.vmm_pid}/status").read_text()
        assert f"Groups:\t{groups}" in status
        assert b"-accel\0kvm" in pathlib.Path(f"/proc/{sandbox.vmm_pid}/cmdline").read_bytes()
    fake.misbehave(exit_at_start=7)  # so a probe now would find out otherwise
    async with new_factory(accelerator="", snapshots=None) as factory:
        assert factory.isolation is IsolationTier.HARDWARE_VM, "the finding is kept until the host boots anew"
    async with new_factory("other", accelerator="", snapshots=None) as factory:
        assert factory.isolation is IsolationTier.EMULATED_VM
        assert "QEMU exited with 7" in factory.describe()["why"]
