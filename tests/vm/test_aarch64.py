"""The other architecture: the same recipe, initramfs and arguments, built and booted once. Minutes, so for `make soak`.

Its programs are emulated while the image is built (qemu-user, by the kernel's binfmt_misc), its machine when it runs.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import subprocess

import pytest

from tests.support.capabilities import require
from tests.vm.conftest import CACHE
from vm0.image import ImageStore, build_image, load_recipe
from vm0.image.packages import BINFMT
from vm0.sandbox import IsolationTier, SandboxConfig
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(3000)]

ARCHITECTURE = "aarch64"
MEMORY_MIB = 512


def have_emulation() -> None:
    """Mount binfmt_misc where no init did, which is when its package could not register the emulators either."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], timeout=20, check=False)
    if not (BINFMT / "qemu-aarch64").exists() and shutil.which("update-binfmts"):
        subprocess.run(["update-binfmts", "--enable"], timeout=20, check=False, capture_output=True)


async def test_an_arm64_image_is_built_booted_and_restored(tmp_path: pathlib.Path) -> None:
    require(os.geteuid() == 0, "building and booting need root")
    require(shutil.which("qemu-system-aarch64") is not None, "qemu-system-arm is not installed")
    if platform.machine() != ARCHITECTURE:
        have_emulation()
        require((BINFMT / "qemu-aarch64").exists(), "qemu-user-static and binfmt-support are not installed")
    image = build_image(ImageStore(CACHE / "images"), load_recipe("base"), architecture=ARCHITECTURE, progress=print)
    for snapshots in (None, tmp_path / "snapshots"):
        options = QemuOptions(image=image, memory_mib=MEMORY_MIB, snapshots=snapshots)
        async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
            sandbox = await factory.create(SandboxConfig(sandbox_id="arm", memory_mib=MEMORY_MIB))
            assert isinstance(sandbox, QemuSandbox)
            await sandbox.start()
            assert ("load" in sandbox.start_seconds) == (snapshots is not None)
            result = await sandbox.exec(sh("uname -m; id -un; git --version >/dev/null && echo works"))
            assert result.stdout.data.split() == [b"aarch64", b"user", b"works"]
            if platform.machine() != ARCHITECTURE:
                assert sandbox.isolation is IsolationTier.EMULATED_VM
