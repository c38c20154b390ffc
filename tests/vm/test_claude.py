"""The `claude-code` image: the real program starts in a VM. It is large and comes from npm, so for `make soak`."""

from __future__ import annotations

import pathlib
import re
import shutil

import pytest

from tests.support.capabilities import require
from tests.vm.conftest import CACHE
from vm0.image import Image, ImageStore, build_image, load_recipe
from vm0.sandbox import SandboxConfig
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


async def test_claude_starts(image: Image, tmp_path: pathlib.Path) -> None:
    require(shutil.which("npm") is not None, "npm is not installed")
    claude = build_image(ImageStore(CACHE / "images"), load_recipe("claude-code"), architecture=image.architecture)
    options = QemuOptions(image=claude, memory_mib=2048, snapshots=tmp_path / "snapshots")
    async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
        sandbox = await factory.create(SandboxConfig(sandbox_id="claude", memory_mib=2048))
        await sandbox.start()
        result = await sandbox.exec(sh("claude --version", timeout_s=120))
    assert re.fullmatch(r"\d+\.\d+\.\d+ \(Claude Code\)", result.stdout.data.decode().strip()), result
