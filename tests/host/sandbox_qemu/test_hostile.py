"""VMMs that flood, hang, stand still or die: each is ended within its limits, costs little, and holds up nobody."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import time

import pytest

from tests.host.sandbox_qemu.conftest import config
from tests.host.sandbox_qemu.leftovers import Leftovers
from tests.host.sandbox_qemu.test_life import facts, started
from tests.support.fake_qemu.installation import FakeQemu
from vm0.sandbox import ExecRequest, Reason, SandboxError, SandboxOperationError, StartError, State
from vm0.sandbox.testing import state_of
from vm0.sandbox_qemu import QemuSandboxFactory, monitor, vm
from vm0.vsock_host import client

pytestmark = pytest.mark.host

FLOOD_MIB = 100
MAX_GROWTH_MIB = 24  # of this process, by whatever a VMM prints: a ring has 64 KiB, garbage some MiB
AT_ONCE_S = 10.0  # on a busy machine, and far below the limits as they are shipped
LIMIT_S = 0.5
EVENTS = 100_000  # times 600 bytes

TRUE = ExecRequest(argv=("true",))


def resident_mib() -> float:
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


@pytest.mark.parametrize("where", ["console", "output"])
async def test_a_flood_of_text(factory: QemuSandboxFactory, leftovers: Leftovers, fake: FakeQemu, where: str) -> None:
    """100 MiB as fast as it can: of it the end is kept, and both it and the sandbox beside it work meanwhile."""
    good = await started(factory, "good")
    fake.misbehave(flood={where: FLOOD_MIB})
    before = resident_mib()
    loud = await started(factory, "loud")
    ring = loud.vm()._console.ring if where == "console" else loud.vm().process._output.ring
    slowest = 0.0
    async with asyncio.timeout(60):
        while ring.total < FLOOD_MIB * 1024 * 1024:
            begun = time.monotonic()
            assert (await good.exec(TRUE)).exit_code == 0
            slowest = max(slowest, time.monotonic() - begun)
            assert (await loud.exec(TRUE)).exit_code == 0
    growth = resident_mib() - before
    print(f"{FLOOD_MIB} MiB on {where}: slowest exec beside it {slowest * 1000:.0f} ms, {growth:.1f} MiB more memory")
    assert slowest < AT_ONCE_S
    assert growth < MAX_GROWTH_MIB
    assert "of a flood" in loud.vm().log_tail and len(loud.vm().log_tail) < 16 * 1024
    for sandbox in (loud, good):
        await factory.destroy(sandbox)
    await leftovers.assert_none()


async def test_a_flood_that_goes_on_is_ended_at_once(
    factory: QemuSandboxFactory, leftovers: Leftovers, fake: FakeQemu
) -> None:
    fake.misbehave(flood={"console": 1 << 20, "output": 1 << 20}, ignore_sigterm=True)
    loud = await started(factory)
    begun = time.monotonic()
    await factory.destroy(loud)
    assert time.monotonic() - begun < AT_ONCE_S
    await leftovers.assert_none()


async def test_a_flood_of_events_on_the_monitor(
    factory: QemuSandboxFactory, leftovers: Leftovers, fake: FakeQemu
) -> None:
    """A VMM that was taken over can say there what it likes: it is read, and not kept."""
    good = await started(factory, "good")
    fake.misbehave(event_flood=EVENTS)
    before = resident_mib()
    loud = await factory.create(config("loud"))
    starting = asyncio.create_task(loud.start())
    slowest = 0.0
    while not starting.done():
        begun = time.monotonic()
        assert (await good.exec(TRUE)).exit_code == 0
        slowest = max(slowest, time.monotonic() - begun)
    try:
        await starting
    except StartError as exc:
        assert exc.step == "load"  # it took longer than the limit of an answer
    growth = resident_mib() - before
    print(f"{EVENTS} events: slowest exec beside it {slowest * 1000:.0f} ms, {growth:.1f} MiB more memory")
    assert slowest < AT_ONCE_S
    assert growth < MAX_GROWTH_MIB
    for sandbox in (loud, good):
        await factory.destroy(sandbox)
    await leftovers.assert_none()


async def test_a_monitor_that_hangs_holds_up_no_stop(
    factory: QemuSandboxFactory, leftovers: Leftovers, fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.misbehave(hang=["stop"])
    sandbox = await started(factory)
    monkeypatch.setattr(monitor, "ANSWER_S", LIMIT_S)
    with pytest.raises(SandboxError, match=r"stop: no answer within 0.5 s"):
        await sandbox.pause()
    assert state_of(sandbox) is State.RUNNING
    assert (await sandbox.exec(TRUE)).exit_code == 0, "the guest is as well as before"
    with pytest.raises(SandboxError, match="no answer within"):
        await sandbox.set_memory(8)
    await sandbox.stop()
    assert state_of(sandbox) is State.STOPPED
    await factory.destroy(sandbox)
    await leftovers.assert_none()


async def test_a_machine_that_stands_still_is_ended(
    factory: QemuSandboxFactory, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal, it answers neither guest nor monitor requests; a stop asks, waits its limit, and ends it."""
    monkeypatch.setattr(client, "SHUTDOWN_S", LIMIT_S)
    sandboxes = [await started(factory, name) for name in ("stopped", "killed", "destroyed")]
    for sandbox in sandboxes:
        os.kill(sandbox.vmm_pid, signal.SIGSTOP)
    begun = time.monotonic()
    await asyncio.gather(sandboxes[0].stop(), sandboxes[1].kill(), factory.destroy(sandboxes[2]))
    assert time.monotonic() - begun < AT_ONCE_S
    assert leftovers.vmms() == set()
    for sandbox in sandboxes:
        await factory.destroy(sandbox)
    await leftovers.assert_none()


async def test_it_dies_while_it_works(factory: QemuSandboxFactory, leftovers: Leftovers) -> None:
    sandbox = await started(factory)
    waiting = asyncio.create_task(sandbox.exec(ExecRequest(argv=("wait",))))
    await sandbox.exec(TRUE)  # the other one has begun
    os.kill(sandbox.vmm_pid, signal.SIGKILL)
    async with asyncio.timeout(AT_ONCE_S):
        assert "QEMU was killed by SIGKILL" in await sandbox.crashed()
        with pytest.raises(SandboxOperationError) as caught:
            await waiting
    assert caught.value.reason is Reason.CRASHED and state_of(sandbox) is State.CRASHED
    for operation in (sandbox.pause, sandbox.quiesce, lambda: sandbox.exec(TRUE)):
        with pytest.raises(SandboxError):
            await operation()
    await sandbox.stop()
    await factory.destroy(sandbox)
    await leftovers.assert_none()


@pytest.mark.parametrize(
    "faults",
    [
        {"refuse": {"migrate": "no"}},
        {"hang": ["migrate"]},
        {"hang": ["stop"]},
        {"exit_on": {"getfd": 3}},
        {"guest_errors": ["Quiesce"]},
    ],
)
async def test_a_fork_that_fails(
    factory: QemuSandboxFactory,
    leftovers: Leftovers,
    fake: FakeQemu,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, object],
) -> None:
    """Nothing is left of it. What was forked works on; if it cannot be made to, it has crashed, and says so."""
    fake.misbehave(**faults)
    sandbox = await started(factory)
    monkeypatch.setattr(monitor, "ANSWER_S", LIMIT_S)
    monkeypatch.setattr(vm, "EXIT_NOTE_S", LIMIT_S)
    begun = time.monotonic()
    with pytest.raises(SandboxError):
        await factory.fork(sandbox, [config("fork")])
    assert time.monotonic() - begun < AT_ONCE_S
    if "exit_on" in faults or "hang" in faults:
        async with asyncio.timeout(AT_ONCE_S):
            await sandbox.crashed()
        assert state_of(sandbox) is State.CRASHED
    else:
        assert (await facts(sandbox))["hostname"] == "sandbox"
    await factory.destroy(sandbox)
    await leftovers.assert_none()


async def test_a_passage_that_fails(factory: QemuSandboxFactory, leftovers: Leftovers, fake: FakeQemu) -> None:
    """The VM through which a fork's memory travels does not come up: what was forked never notices."""
    sandbox = await started(factory)
    for faults in ({"exit_at_start": 3}, {"refuse": {"migrate-incoming": "no"}}, {"refuse": {"migrate": "no"}}):
        fake.misbehave(**faults)
        with pytest.raises(SandboxError):
            await factory.fork(sandbox, [config("fork")])
        assert (await facts(sandbox))["hostname"] == "sandbox"
    fake.misbehave(guest_errors=["Restore"])  # the fork itself
    with pytest.raises(StartError):
        await factory.fork(sandbox, [config("fork-1"), config("fork-2")])
    assert (await facts(sandbox))["hostname"] == "sandbox"
    await factory.destroy(sandbox)
    await leftovers.assert_none()
