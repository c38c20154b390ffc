"""The QEMU backend as the runner configures it, and the one boot by which an image is checked."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from vm0.image import Image, ImageError, ImageStore, guest_build, load_recipe
from vm0.runner.backends.errors import ImageMissing
from vm0.runner.config import RunnerConfig
from vm0.sandbox import BackendUnavailable, ExecRequest, SandboxConfig, SandboxError
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory
from vm0.sandbox_qemu.machines import machine_for
from vm0.sandbox_qemu.requirements import check_host

CHECK_MEMORY_MIB = 512


def make_factory(config: RunnerConfig, say: Callable[[str], None]) -> QemuSandboxFactory:
    """Raises BackendUnavailable with what this host lacks: root, programs, the image."""
    check_machine()
    options = QemuOptions(
        image=find_image(ImageStore(config.images_dir), config.image),
        vcpus=config.sandbox_vcpus,
        memory_mib=config.sandbox_memory_mib,
        disk_mib=config.sandbox_disk_mib,
        snapshots=config.snapshots_dir if config.snapshot else None,
        accelerator="" if config.accelerator == "auto" else config.accelerator,
    )
    return QemuSandboxFactory(config.state_dir / "qemu", options, say=say)


def check_machine(architecture: str = "") -> None:
    """Raises BackendUnavailable if this host cannot start VMs of this architecture, by default its own."""
    machine = machine_for(architecture)
    check_host()
    if shutil.which(machine.binary) is None:
        raise BackendUnavailable(
            f"{machine.binary} is not installed", hint=f"let `vm0 setup` do it (package {machine.package})"
        )


def find_image(store: ImageStore, name: str) -> Image:
    """By key or by recipe, with the guest code that is installed here: host and guest must be of one build.

    Raises BackendUnavailable if it has to be built.
    """
    build = guest_build()
    if (image := store.get(name)) is not None:
        if image.build != build:
            raise BackendUnavailable(
                f"image {name} has guest code {image.build}, this installation {build}",
                hint=f"name its recipe ({image.name}) instead of its key",
            )
        return image
    try:
        recipe = load_recipe(name)
        if (image := store.find(recipe, platform.machine(), build)) is not None:
            return image
    except ImageError as exc:
        raise BackendUnavailable(f"image {name}: {exc}", hint=exc.hint) from exc
    others = [image for image in store.list() if image.name == recipe.name]
    what = "was built from another recipe or with other guest code" if others else "is not built yet"
    raise ImageMissing(
        f"image {name} {what} ({store.root})", hint=f"build it: `vm0 setup --image {name}`, or `vm0 image build {name}`"
    )


async def boot_once(image: Image, root: Path) -> None:
    """Boot it in a factory at `root` and run a command in it. Raises SandboxError with what the guest said last."""
    options = QemuOptions(image=image, memory_mib=CHECK_MEMORY_MIB)
    async with QemuSandboxFactory(root, options) as factory:
        sandbox = await factory.create(SandboxConfig(sandbox_id="image-check", memory_mib=CHECK_MEMORY_MIB))
        await sandbox.start()
        result = await sandbox.exec(ExecRequest(argv=("true",)))
        if result.shell_code != 0:
            raise SandboxError(f"`true` {result.ended.value} with {result.shell_code}: {result.diagnostic}")
