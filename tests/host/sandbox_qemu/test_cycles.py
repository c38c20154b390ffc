"""Many lives with the fake VMM, several at a time: nothing is left, and the owner does not grow."""

from __future__ import annotations

import asyncio
import pathlib
import time

import pytest

from tests.host.sandbox_qemu.conftest import config
from tests.host.sandbox_qemu.leftovers import Leftovers
from vm0.sandbox_qemu import QemuSandboxFactory

pytestmark = pytest.mark.host

AT_ONCE = 8
WARM_UP = 24  # lives after which the owner has all that it keeps
GROWTH_KIB_PER_LIFE = 16


def resident_kib() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def lives(factory: QemuSandboxFactory, count: int) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def life(number: int) -> None:
        async with gate:
            sandbox = await factory.create(config(f"life-{number}"))
            await sandbox.start()
            await factory.destroy(sandbox)

    await asyncio.gather(*(life(number) for number in range(count)))


@pytest.mark.parametrize(
    "count", [60, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)  # fmt: skip
async def test_many_lives(factory: QemuSandboxFactory, leftovers: Leftovers, count: int) -> None:
    """Processes, descriptors, namespaces, links, rules, mounts, loop devices, sockets, files, cgroups: as before."""
    await lives(factory, WARM_UP)
    before, begun = resident_kib(), time.monotonic()
    await lives(factory, count)
    seconds, grown = time.monotonic() - begun, resident_kib() - before
    print(f"{count} lives: {60 * count / seconds:.0f} per minute, {grown} KiB more memory")
    await leftovers.assert_none(f"{count} lives")
    assert grown < 4096 + GROWTH_KIB_PER_LIFE * count
