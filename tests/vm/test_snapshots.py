"""A snapshot that cannot be used is refused with the reason and made again; the next owner removes what is left."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pathlib
import sys

import pytest

from tests.support.host_inventory import host_inventory
from tests.vm.conftest import CACHE, MEMORY_MIB
from vm0.sandbox import SandboxConfig
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory

pytestmark = pytest.mark.vm

OWNER = """
import asyncio, pathlib, sys
from tests.vm.conftest import CACHE, MEMORY_MIB
from vm0.image import ImageStore, build_image, load_recipe
from vm0.sandbox import SandboxConfig
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory

async def main():
    image = build_image(ImageStore(CACHE / "images"), load_recipe("base"), architecture="x86_64")
    options = QemuOptions(image=image, memory_mib=MEMORY_MIB, snapshots=CACHE / "snapshots")
    async with QemuSandboxFactory(pathlib.Path(sys.argv[1]), options) as factory:
        for number in range(2):
            sandbox = await factory.create(SandboxConfig(sandbox_id=f"left-{number}", memory_mib=MEMORY_MIB))
            await sandbox.start()
            print(sandbox.vmm_pid, factory.network_pool, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def answers(factory: QemuSandboxFactory, name: str) -> None:
    sandbox = await factory.create(SandboxConfig(sandbox_id=name, memory_mib=MEMORY_MIB))
    await sandbox.start()
    assert (await sandbox.exec(sh("echo on"))).stdout.data == b"on\n"
    await factory.destroy(sandbox)


async def test_a_truncated_snapshot_is_made_again(
    tmp_path: pathlib.Path, options: QemuOptions, caplog: pytest.LogCaptureFixture
) -> None:
    own = dataclasses.replace(options, snapshots=tmp_path / "snapshots")
    async with QemuSandboxFactory(tmp_path / "qemu", own) as factory:
        await answers(factory, "first")
    (memory,) = (tmp_path / "snapshots").glob("*/memory")
    size = memory.stat().st_size
    os.truncate(memory, size // 2)
    caplog.set_level(logging.INFO, "vm0.sandbox_qemu")
    async with QemuSandboxFactory(tmp_path / "qemu", own) as factory:
        await answers(factory, "second")
    assert f"memory has {size // 2} bytes, {size} were written" in caplog.text
    assert memory.stat().st_size == size


def runs(pid: int) -> bool:
    """Not if it has ended and nobody has asked how: it was its killed owner's child."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_what_a_killed_owner_left_is_removed(tmp_path: pathlib.Path, options: QemuOptions) -> None:
    root = tmp_path / "qemu"
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(root), stdout=asyncio.subprocess.PIPE, cwd=CACHE.parent
    )
    assert owner.stdout is not None
    rows = [(await owner.stdout.readline()).split() for _ in range(2)]
    owner.kill()
    await owner.wait()
    pids, pool = [int(row[0]) for row in rows], int(rows[0][1])
    assert all(runs(pid) for pid in pids), "they outlive their owner"
    async with QemuSandboxFactory(root, options) as factory:
        assert not any(runs(pid) for pid in pids)
        assert list((root / "sandboxes").iterdir()) == []
        await answers(factory, "next")
    assert [line for line in host_inventory(root, pool) if line.startswith(("netns", "link", "rule"))] == []
