"""The initramfs in a real machine: the probe, the way to the root, and one clear line and an end for all that fails."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import time

import pytest

from vm0.image import Image
from vm0.image.customize import index_of
from vm0.image.initramfs import initramfs, plain_module
from vm0.image.kernel_modules import load_order

pytestmark = pytest.mark.vm

BOOT_S = 120.0
ARGUMENTS = (
    *("qemu-system-x86_64", "-accel", "tcg", "-M", "pc", "-cpu", "max", "-m", "256", "-smp", "1", "-no-reboot"),
    *("-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"),
)
NONSENSE = "vm0.ip=nonsense"  # PID 1 ends at once when it is told that
KERNEL_WORDS = "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 mitigations=off"


@dataclasses.dataclass(frozen=True)
class Ended:
    console: str
    took_s: float

    @property
    def said(self) -> list[str]:
        """Our lines; the firmware writes before them, in the same line too."""
        return [line[line.index("vm0") :] for line in self.console.splitlines() if "vm0" in line]


def boot(
    image: Image,
    words: str = "",
    *,
    disk: pathlib.Path | None = None,
    archive: pathlib.Path | None = None,
    kernel: pathlib.Path | None = None,
) -> Ended:
    """Until the machine is off, by itself."""
    drive = f"id=root,file={disk},format=raw,readonly=on,if=none,file.locking=off"
    started = time.monotonic()
    done = subprocess.run(
        [
            *ARGUMENTS,
            *("-kernel", kernel or image.vmlinuz, "-initrd", archive or image.initramfs),
            *(("-drive", drive, "-device", "virtio-blk-pci,drive=root") if disk else ()),
            *("-append", f"{KERNEL_WORDS} {words}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=BOOT_S,
        check=True,
    )
    assert "Kernel panic" not in done.stdout
    return Ended(done.stdout, time.monotonic() - started)


def test_the_probe_ends_before_anything_is_loaded(image: Image) -> None:
    """No disk is there, and none is missed: the line says that this machine boots a guest."""
    assert boot(image, "vm0.probe=1").said == ["vm0-probe-ok"]


@pytest.mark.parametrize("words", ["vm0.probe=0", "vm0.probe=11", "xvm0.probe=1"])
def test_other_words_are_no_probe(image: Image, words: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    assert "vm0-probe-ok" not in boot(image, words, disk=tmp_path / "disk").console


def test_the_root_is_started(image: Image) -> None:
    """PID 1 of the guest speaks: it was told nonsense, and says so."""
    (said,) = boot(image, NONSENSE, disk=image.rootfs).said
    assert said.startswith("vm0: init failed at kernel parameters")


def test_the_uncompressed_kernel_boots_too(image: Image) -> None:
    """Firecracker takes nothing else; QEMU starts it by its PVH entry."""
    assert boot(image, "vm0.probe=1", kernel=image.vmlinux).said == ["vm0-probe-ok"]


def test_no_disk(image: Image) -> None:
    assert boot(image).said == ["vm0: initramfs: no disk /dev/vda appeared"]


def test_a_disk_that_is_no_squashfs(image: Image, tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    assert boot(image, disk=tmp_path / "disk").said[-1] == "vm0: initramfs: cannot mount /dev/vda as squashfs"


def test_a_root_that_is_no_guest_of_ours(image: Image, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree/dev").mkdir(parents=True)
    subprocess.run(["mksquashfs", tmp_path / "tree", tmp_path / "disk", "-quiet", "-no-progress"], check=True)
    said = boot(image, disk=tmp_path / "disk").said
    assert said == ["vm0: initramfs: the root has no /usr/lib/vm0/init"]


@pytest.mark.parametrize("name", ["virtio_blk", "vsock"])
def test_a_module_that_cannot_be_loaded(image: Image, tmp_path: pathlib.Path, name: str) -> None:
    """One that is needed ends the machine and is named; without one that is only wanted it goes on."""
    modules = next(image.directory.parent.glob(f"bases/*/kernel/modules/{image.manifest['kernel']['version']}"))
    contents = [
        (module, plain_module(module.file, (modules / module.file).read_bytes()))
        for module in load_order(index_of(modules))
    ]
    damaged = [(module, b"damaged" if module.name == name else content) for module, content in contents]
    archive = tmp_path / "initramfs"
    archive.write_bytes(initramfs((modules.parent.parent / "busybox").read_bytes(), damaged))
    said = boot(image, NONSENSE, disk=image.rootfs, archive=archive).said
    if name == "virtio_blk":
        assert len(said) == 1 and said[0].startswith("vm0: initramfs: cannot load virtio_blk.ko: ")
        assert said[0].endswith(("Invalid argument", "Exec format error", "invalid module format"))
    else:
        assert len(said) == 1 and said[0].startswith("vm0: init failed at kernel parameters")
