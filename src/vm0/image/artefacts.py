"""The files of an image, from its trees: kernel, initramfs, root file system and image.json."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from vm0 import __version__
from vm0.image.architectures import Architecture
from vm0.image.command import Commands
from vm0.image.customize import index_of
from vm0.image.initramfs import checked_busybox, initramfs, plain_module
from vm0.image.kernel_modules import load_order
from vm0.image.keys import FORMAT, digest_of
from vm0.image.layers import Base
from vm0.image.recipe import Recipe
from vm0.image.store import ARTEFACTS
from vm0.image.tree import FIXED_TIME

PACK_S = 600.0
# Levels above make the file a tenth smaller and take ten times as long; unpacking takes the same time.
COMPRESSION = ("-comp", "zstd", "-Xcompression-level", "3")


def link_kernel(target: Path, installed: Base) -> None:
    """vmlinuz and vmlinux, as links to the base's: they are the same in every image made from it."""
    for name in ("vmlinuz", "vmlinux"):
        os.link(installed.kernel / name, target / name)


def write_initramfs(target: Path, installed: Base, machine: Architecture) -> None:
    modules = [
        (module, plain_module(module.file, (installed.modules / module.file).read_bytes()))
        for module in load_order(index_of(installed.modules))
    ]
    busybox = checked_busybox((installed.kernel / "busybox").read_bytes(), machine.elf_machine)
    (target / "initramfs").write_bytes(initramfs(busybox, modules))


def write_rootfs(target: Path, tree: Path, commands: Commands) -> None:
    """The tree as squashfs; the same bytes for the same tree. Raises BuildError."""
    commands.run(
        [
            *("mksquashfs", tree, target / "rootfs.squashfs", "-noappend", "-no-recovery", "-no-progress", "-quiet"),
            *(*COMPRESSION, "-mkfs-time", str(FIXED_TIME)),
        ],
        what="packing the root file system",
        timeout_s=PACK_S,
        hint="mksquashfs of squashfs-tools 4.4 or newer, with zstd, is needed",
    )


def manifest_of(
    staging: Path, *, recipe: Recipe, machine: Architecture, build: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """image.json. `digest` is of the artefacts alone: when and by whom they were built is not in it."""
    artefacts = {
        name: {"sha256": sha256_of(staging / name), "size": (staging / name).stat().st_size} for name in ARTEFACTS
    }
    return {
        "format": FORMAT,
        "architecture": machine.name,
        "recipe": recipe.normalized(),
        "guest_build": build,
        "artefacts": artefacts,
        "digest": digest_of({name: found["sha256"] for name, found in artefacts.items()}),
        "kernel": {**facts["kernel"], "vmlinux": machine.vmlinux, "console": machine.console},
        "python": facts["packages"]["python3-minimal"],
        "packages": facts["packages"],
        "npm": facts["npm"],
        "warm": list(recipe.warm),
        "built_at": int(time.time()),
        "built_by": __version__,
    }


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
