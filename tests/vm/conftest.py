"""Virtual machines for tests: one image and one set of snapshots, made once and kept in the repository's `.test-cache`.

"Running a test in a VM is as easy as asking for `sandbox`." `factory` is entered for the module, because that loads the
snapshot; sandboxes are made for each test and destroyed after it.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support.capabilities import require
from vm0.image import Image, ImageStore, build_image, load_recipe
from vm0.sandbox import SandboxConfig
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory
from vm0.sandbox_qemu.sandbox import QemuSandbox

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".test-cache"
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mksquashfs", "nft", "mkfs.ext4")
MEMORY_MIB = 256

NewSandbox = Callable[..., Awaitable[QemuSandbox]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A VM without hardware virtualisation, on a busy machine, needs minutes for what usually takes seconds."""
    for item in items:
        if item.path.is_relative_to(pathlib.Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def image() -> Image:
    """The `base` image with the guest code as it is now; the first time a minute, then seconds."""
    require(os.geteuid() == 0, "virtual machines need root")
    require(platform.machine() == "x86_64", "these tests start x86_64 guests")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    require(not missing, f"not installed: {', '.join(missing)}")
    return build_image(ImageStore(CACHE / "images"), load_recipe("base"), architecture="x86_64")


@pytest.fixture(scope="session")
def snapshots() -> pathlib.Path:
    return CACHE / "snapshots"


@pytest.fixture
def options(image: Image, snapshots: pathlib.Path) -> QemuOptions:
    """Of a small VM that is restored."""
    return QemuOptions(image=image, memory_mib=MEMORY_MIB, snapshots=snapshots)


@pytest.fixture
async def factory(tmp_path: pathlib.Path, options: QemuOptions) -> AsyncIterator[QemuSandboxFactory]:
    async with QemuSandboxFactory(tmp_path / "qemu", options) as factory:
        yield factory


@pytest.fixture
def new_sandbox(factory: QemuSandboxFactory) -> NewSandbox:
    """Makes a sandbox of the factory, not started; leaving the factory destroys it."""

    async def make(**overrides: object) -> QemuSandbox:
        config = {"sandbox_id": f"t-{uuid.uuid4().hex[:12]}", "memory_mib": MEMORY_MIB, **overrides}
        sandbox = await factory.create(SandboxConfig(**config))  # type: ignore[arg-type]  # the test's keywords
        assert isinstance(sandbox, QemuSandbox)
        return sandbox

    return make


@pytest.fixture
async def sandbox(new_sandbox: NewSandbox) -> QemuSandbox:
    """A restored sandbox, running."""
    sandbox = await new_sandbox()
    await sandbox.start()
    return sandbox


@pytest.fixture
async def booted(new_sandbox: NewSandbox) -> QemuSandbox:
    """A sandbox that went through a whole boot."""
    sandbox = await new_sandbox(memory_mib=MEMORY_MIB + 1)  # not the snapshot's shape
    await sandbox.start()
    return sandbox
