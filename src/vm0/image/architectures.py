"""What differs between the machines that an image can be built for: one row each, and nothing elsewhere.

The arguments of a virtual machine differ too; those are in the table of the backend that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vm0.image.errors import ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """`name` is the kernel's (`uname -m`)."""

    name: str
    debian: str  # of packages
    kernel_package: str  # metapackage that depends on the newest kernel for virtual machines
    console: str  # device of the kernel's console
    npm: str  # how npm packages with native code name it
    elf_machine: int  # e_machine of its programs
    emulator: str  # runs its programs on another machine (qemu-user)
    vmlinux: str  # what the uncompressed kernel is


ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture(
            name="x86_64",
            debian="amd64",
            kernel_package="linux-image-cloud-amd64",
            console="ttyS0",
            npm="x64",
            elf_machine=62,
            emulator="qemu-x86_64",
            vmlinux="ELF",
        ),
        Architecture(
            name="aarch64",
            debian="arm64",
            kernel_package="linux-image-cloud-arm64",
            console="ttyAMA0",
            npm="arm64",
            elf_machine=183,
            emulator="qemu-aarch64",
            vmlinux="Image",
        ),
    )
}


def architecture(name: str) -> Architecture:
    """The row with this name, which may be Debian's or the kernel's. Raises ImageError."""
    for row in ARCHITECTURES.values():
        if name in (row.name, row.debian):
            return row
    raise ImageError(f"no image can be built for {name!r}", hint=f"choose one of {', '.join(ARCHITECTURES)}")
