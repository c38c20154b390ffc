"""The initial file system of the guest: a static busybox, the drivers in order of loading, and a script as PID 1.

It is small because each byte is unpacked at every cold boot, and the same bytes for the same input.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence

from vm0.image import cpio
from vm0.image.decompression import decompressed
from vm0.image.errors import ImageError
from vm0.image.kernel_image import ELF
from vm0.image.kernel_modules import Module
from vm0.microvm.guest import GUEST_PYTHON, INIT_PATH

APPLETS = ("sh", "mount", "umount", "insmod", "switch_root", "poweroff", "reboot", "usleep")  # what the script calls
FOLDERS = ("bin", "dev", "modules", "proc", "root", "sys")
MAX_MODULE_BYTES = 64 * 1024 * 1024
COMPRESSION_LEVEL = 19  # it is built rarely and unpacked at every boot; unpacking takes the same time at every level


def init_script() -> str:
    text = importlib.resources.files("vm0.image").joinpath("initramfs_init.sh").read_text(encoding="utf-8")
    return text.replace("@INIT_PATH@", INIT_PATH).replace("@GUEST_PYTHON@", GUEST_PYTHON)


def initramfs(busybox: bytes, modules: Sequence[tuple[Module, bytes]]) -> bytes:
    """The archive, compressed. `modules` are in order of loading, each with its file's (uncompressed) content."""
    import zstandard

    order = "".join(f"{'needed' if module.needed else 'wanted'} {module.name}.ko\n" for module, _ in modules)
    entries = [
        *(cpio.directory(folder) for folder in FOLDERS),
        cpio.character_device("dev/console", 5, 1),
        cpio.file("init", init_script().encode(), 0o755),
        cpio.file("bin/busybox", busybox, 0o755),
        *(cpio.symlink(f"bin/{applet}", "busybox") for applet in APPLETS),
        cpio.file("modules/order", order.encode()),
        *(cpio.file(f"modules/{module.name}.ko", content) for module, content in modules),
    ]
    # One thread and no checksum of its own: the same bytes everywhere, and the kernel checks nothing anyway.
    return zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(cpio.archive(entries))


def plain_module(path: str, content: bytes) -> bytes:
    """A module's ELF file from what is in the package, which may be compressed. Raises ImageError."""
    plain = content if content.startswith(ELF) else decompressed(content, what=path, most=MAX_MODULE_BYTES)
    if not plain.startswith(ELF):
        raise ImageError(f"{path}: this is no kernel module")
    return plain


def programs_machine(program: bytes) -> int:
    """e_machine of an ELF file, 0 if it is none."""
    return int.from_bytes(program[18:20], "little") if program.startswith(ELF) else 0


def checked_busybox(busybox: bytes, machine: int) -> bytes:
    """`busybox`, if it is a program for that machine. Raises ImageError."""
    if programs_machine(busybox) != machine:
        raise ImageError("the busybox-static package has no program for this architecture")
    return busybox
