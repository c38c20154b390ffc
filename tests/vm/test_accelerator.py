"""Whether KVM works is found out by booting a guest, and the answer has a cause."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from vm0.image import Image
from vm0.sandbox_qemu import accelerator
from vm0.sandbox_qemu.accelerator import Finding, find_accelerator, probe
from vm0.sandbox_qemu.argv import Accelerator
from vm0.sandbox_qemu.factory import PROBE_UID
from vm0.sandbox_qemu.machines import MACHINES
from vm0.sandbox_qemu.vm import BootFiles

pytestmark = pytest.mark.vm
MACHINE = MACHINES["x86_64"]


@pytest.fixture
def files(image: Image) -> BootFiles:
    return BootFiles(kernel=image.vmlinuz, initramfs=image.initramfs, root=image.rootfs)


async def test_the_probe_guest_boots(files: BootFiles) -> None:
    """By emulation it always does, as the user that VMs run as; so a probe that fails says something about KVM."""
    assert await probe(MACHINE, files, uid=PROBE_UID, accelerator=Accelerator.TCG, limit_s=60) == ""


async def test_a_kvm_that_boots_nothing_is_found_out(files: BootFiles) -> None:
    """On a machine where it works: that it does. Either way within the limit, and no process is left."""
    begun = time.monotonic()
    why = await probe(MACHINE, files, uid=None)
    assert time.monotonic() - begun < accelerator.PROBE_S + 5
    if not os.path.exists("/dev/kvm"):
        assert "QEMU exited with" in why and "vm" in why.lower()
    elif why:
        assert "the probe guest did not come up" in why


async def test_the_answer_is_kept(files: BootFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def refuse(*args: object, **options: object) -> str:
        asked.append(1)
        return "the probe guest did not come up"

    device, cache = tmp_path / "kvm", tmp_path / "accelerator.json"
    device.touch()
    device.chmod(0o666)
    monkeypatch.setattr(accelerator, "KVM", device)
    monkeypatch.setattr(accelerator, "probe", refuse)
    found = [await find_accelerator(MACHINE, files, uid=1, cache=cache, qemu_version="7") for _ in range(2)]
    assert found[0] == found[1] and len(asked) == 1
    assert found[0].accelerator is Accelerator.TCG
    assert found[0].why.startswith("the probe guest did not come up (")
    device.chmod(0o646)  # something about it changed
    await find_accelerator(MACHINE, files, uid=1, cache=cache, qemu_version="7")
    cache.write_text("{")
    await find_accelerator(MACHINE, files, uid=1, cache=cache, qemu_version="7")
    assert len(asked) == 3


async def test_causes_that_need_no_probe(
    files: BootFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    monkeypatch.setattr(accelerator, "KVM", device)

    async def ask() -> Finding:
        return await find_accelerator(MACHINE, files, uid=1, cache=tmp_path / "cache", qemu_version="7")

    assert "hardware virtualisation is off" in (await ask()).why
    device.touch(mode=0o600)
    assert (await ask()).why.startswith("no permission: ")
    arm = await find_accelerator(MACHINES["aarch64"], files, uid=1, cache=tmp_path / "cache", qemu_version="7")
    assert arm.why == "emulates aarch64 on x86_64"
