"""Cancelled at any of its waits, nothing of an operation is left, and what it was done to can be used or destroyed."""

from __future__ import annotations

import asyncio
import itertools
import pathlib
from collections.abc import Awaitable, Callable, Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.host.netns.machine import PrivateHost
from tests.host.sandbox_qemu.cancelling import AtWait, Moment, cancelled_at
from tests.host.sandbox_qemu.conftest import BOOTED_MIB, SIZE_MIB, NewFactory, config
from tests.host.sandbox_qemu.leftovers import Leftovers
from tests.host.sandbox_qemu.test_life import facts, started
from tests.support.fake_qemu.installation import FakeQemu
from vm0.sandbox import Sandbox, StartError, State
from vm0.sandbox.testing import state_of
from vm0.sandbox_qemu import QemuSandboxFactory
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = [pytest.mark.host, pytest.mark.timeout(100)]

MIGRATION_MS = 30  # so that a cancellation finds it under way; measured: one turn of the loop takes far less
AFTER_S = 2 * MIGRATION_MS / 1000

Trial = Callable[[QemuSandboxFactory, int, Moment], Awaitable[bool]]


async def create(factory: QemuSandboxFactory, number: int, moment: Moment, *, memory_mib: int = SIZE_MIB) -> bool:
    """The name is free again, or the sandbox is there."""
    reached = await cancelled_at(number, moment, factory.create(config(memory_mib=memory_mib)))
    for sandbox in list(factory._sandboxes.values()):
        await factory.destroy(sandbox)
    await factory.destroy(await factory.create(config(memory_mib=memory_mib)))
    return reached


async def create_booted(factory: QemuSandboxFactory, number: int, moment: Moment) -> bool:
    return await create(factory, number, moment, memory_mib=BOOTED_MIB)


async def start(factory: QemuSandboxFactory, number: int, moment: Moment, *, memory_mib: int = SIZE_MIB) -> bool:
    sandbox = await factory.create(config(memory_mib=memory_mib))
    reached = await cancelled_at(number, moment, sandbox.start())
    assert not reached or sandbox.state is State.STOPPED
    await factory.destroy(sandbox)
    return reached


async def start_booted(factory: QemuSandboxFactory, number: int, moment: Moment) -> bool:
    return await start(factory, number, moment, memory_mib=BOOTED_MIB)


async def stop(factory: QemuSandboxFactory, number: int, moment: Moment) -> bool:
    sandbox = await started(factory)
    reached = await cancelled_at(number, moment, sandbox.stop())
    await sandbox.stop()
    assert state_of(sandbox) is State.STOPPED
    await factory.destroy(sandbox)
    return reached


async def destroy(factory: QemuSandboxFactory, number: int, moment: Moment) -> bool:
    sandbox = await started(factory)
    reached = await cancelled_at(number, moment, factory.destroy(sandbox))
    await factory.destroy(sandbox)
    await factory.destroy(await factory.create(config()))
    return reached


async def fork(factory: QemuSandboxFactory, number: int, moment: Moment) -> bool:
    """What was forked runs on, also a little later: a migration that was left alone would have stopped it by then."""
    sandbox = await started(factory)
    reached = await cancelled_at(number, moment, factory.fork(sandbox, [config("fork-1"), config("fork-2")]))
    assert (await facts(sandbox))["hostname"] == "sandbox"
    await asyncio.sleep(AFTER_S)
    async with asyncio.timeout(10):
        assert (await facts(sandbox))["hostname"] == "sandbox"
    forks = [each for each in factory._sandboxes.values() if each is not sandbox]
    assert not reached or forks == [], "forks that nobody has"
    for each in (sandbox, *forks):
        await factory.destroy(each)
    return reached


async def pause_and_unpause(factory: QemuSandboxFactory, number: int, moment: Moment) -> bool:
    """Whatever state it is in, it can be brought back to work."""
    sandbox = await started(factory)

    async def both(sandbox: QemuSandbox) -> None:
        await sandbox.pause()
        await sandbox.unpause()

    reached = await cancelled_at(number, moment, both(sandbox))
    if state_of(sandbox) is State.RUNNING:
        await sandbox.pause()
    await sandbox.unpause()
    assert (await facts(sandbox))["hostname"] == "sandbox"
    await factory.destroy(sandbox)
    return reached


def trial(function: Trial, stride: int) -> ParameterSet:
    """`make test` tries every `stride`th wait, another third of them for each moment."""
    return pytest.param(function, stride, id=function.__name__)


def thorough(function: Trial) -> ParameterSet:
    return pytest.param(function, 1, id=f"{function.__name__}-all", marks=pytest.mark.slow)


def waits(stride: int, moment: Moment) -> Iterator[int]:
    """Each moment begins elsewhere, so that together they come to more waits."""
    return itertools.count(list(Moment).index(moment) * stride // len(Moment), stride)


TRIALS = [
    *(trial(each, 2) for each in (create, create_booted, start, start_booted, stop, destroy, pause_and_unpause)),
    trial(fork, 6),
    *map(thorough, (create, create_booted, start, start_booted, stop, destroy, pause_and_unpause, fork)),
]


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)
@pytest.mark.parametrize(("trial", "stride"), TRIALS)
async def test_an_operation_cancelled_at_each_wait(
    factory: QemuSandboxFactory, leftovers: Leftovers, fake: FakeQemu, trial: Trial, stride: int, moment: Moment
) -> None:
    fake.misbehave(migration_ms=MIGRATION_MS)
    for number in waits(stride, moment):
        reached = await trial(factory, number, moment)
        assert factory._namespaces is not None
        while factory._namespaces.ready:  # one that nobody waited for any more belongs to the pool
            await factory._namespaces.release(await factory._namespaces.acquire())
        await leftovers.assert_none(f"{trial.__name__}, wait {number}")
        if not reached:
            break


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)
@pytest.mark.parametrize(
    ("golden", "stride"),
    [
        pytest.param(True, 12, id="golden"),
        pytest.param(False, 4, id="loaded"),
        pytest.param(True, 1, id="golden-all", marks=pytest.mark.slow),
        pytest.param(False, 1, id="loaded-all", marks=pytest.mark.slow),
    ],
)
async def test_entering_and_leaving_a_factory_cancelled_at_each_wait(
    new_factory: NewFactory,
    host: PrivateHost,
    fake: FakeQemu,
    tmp_path: pathlib.Path,
    moment: Moment,
    golden: bool,
    stride: int,
) -> None:
    """No lock is held, nothing runs, and a snapshot is there whole or not at all."""
    store = tmp_path / "roots" / "snapshots"
    async with new_factory(snapshots=store):
        pass
    (snapshot,) = [path for path in store.iterdir() if path.is_dir()]
    leftovers = Leftovers(host, fake, tmp_path / "roots")

    async def life() -> None:
        async with new_factory(snapshots=store) as factory:
            await started(factory)

    for number in waits(stride, moment):
        if golden:
            (snapshot / "complete").unlink()
        reached = await cancelled_at(number, moment, life())
        if golden and not (snapshot / "complete").exists():
            async with new_factory(snapshots=store):
                pass
        await leftovers.assert_none(f"wait {number}")
        assert list((tmp_path / "roots").glob("*/disks/*")) == [], number
        if not reached:
            break


async def test_a_second_start_is_refused_while_the_first_one_goes_on(factory: QemuSandboxFactory) -> None:
    sandbox = await factory.create(config())
    results = await asyncio.gather(sandbox.start(), sandbox.start(), return_exceptions=True)
    assert results[0] is None and "cannot start while starting" in str(results[1])
    assert (await facts(sandbox))["hostname"] == "sandbox"


@pytest.mark.parametrize("memory_mib", [SIZE_MIB, BOOTED_MIB])
async def test_a_start_that_is_overtaken_by_its_destruction(
    factory: QemuSandboxFactory, leftovers: Leftovers, memory_mib: int
) -> None:
    """Destroyed at each wait of its start: when that returns nothing runs, and the start has failed and says why."""
    overtaken = 0
    for number in itertools.count():
        sandbox = await factory.create(config(memory_mib=memory_mib))
        run = AtWait(number, lambda sandbox=sandbox: _destroyed(factory, sandbox, leftovers))  # type: ignore[misc]
        result = await run.result(sandbox.start())
        if run.acted is None:
            assert result is None
            await factory.destroy(sandbox)
            break
        await run.acted
        assert result is None or isinstance(result, StartError), result
        assert state_of(sandbox) is State.STOPPED
        overtaken += result is not None
    assert overtaken > 5
    await leftovers.assert_none()


async def _destroyed(factory: QemuSandboxFactory, sandbox: Sandbox, leftovers: Leftovers) -> None:
    await factory.destroy(sandbox)
    assert leftovers.vmms() == set()
