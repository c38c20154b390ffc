"""The suite that every backend must pass, in virtual machines that were restored, and the life cycle in booted ones."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from vm0.image import Image
from vm0.sandbox import IsolationTier, State
from vm0.sandbox.testing import SandboxSuite, sh
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm


class TestRestored(SandboxSuite):
    @pytest.fixture
    async def factory(
        self, tmp_path: pathlib.Path, image: Image, snapshots: pathlib.Path
    ) -> AsyncIterator[QemuSandboxFactory]:
        async with QemuSandboxFactory(tmp_path / "qemu", QemuOptions(image=image, snapshots=snapshots)) as factory:
            yield factory


async def test_a_booted_machine(booted: QemuSandbox) -> None:
    """Without a snapshot: kernel, initramfs, init, guest endpoint, and all that a restored one can do."""
    assert booted.isolation in (IsolationTier.EMULATED_VM, IsolationTier.HARDWARE_VM)
    assert "boot" in booted.start_seconds
    result = await booted.exec(sh("id -un; pwd; cat /proc/1/comm; hostname; test -s /etc/machine-id && echo named"))
    user, folder, init, hostname, named = result.stdout.data.decode().split()
    assert (user, folder, hostname, named) == ("user", "/home/user", booted.sandbox_id, "named")
    assert init
    await booted.write_file("/home/user/f", b"x", user="user")
    assert (await booted.exec(sh("cat f"))).stdout.data == b"x"
    await booted.stop()
    assert booted.state is State.STOPPED
