"""Builds an image: packages, what the recipe puts on top, the guest's programs; then kernel, initramfs and squashfs.

Three layers, each cached by what went into it, so that a change costs only what lies above it: installed packages (half
a minute), the customized tree (seconds), the packed image (seconds). Each is made in a staging directory under a lock,
and has its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm0 import __version__
from vm0.guest_bundle.build import digest, read_sources
from vm0.image import customize, packages
from vm0.image.architectures import Architecture
from vm0.image.architectures import architecture as table_row
from vm0.image.command import Commands, missing_program
from vm0.image.errors import BuildError, ImageError
from vm0.image.guest_files import INIT_SCRIPT, install_guest_files
from vm0.image.initramfs import checked_busybox, init_script, initramfs, plain_module
from vm0.image.kernel_image import arm64_image, elf_from_bzimage
from vm0.image.kernel_modules import load_order
from vm0.image.recipe import Recipe
from vm0.image.store import ARTEFACTS, COMPLETE, MANIFEST, Image, ImageStore, digest_of, image_of, publish
from vm0.image.tree import FIXED_TIME, fix_times, tidy

FORMAT = 1  # of what a build makes from its inputs; a change makes every image anew
PROGRAMS = ("mmdebstrap", "mksquashfs", "dpkg-deb", "chroot", "unshare", "setpriv", "tar", "cp")
PACK_S = 600.0
COPY_S = 300.0
LOG = "build.log"

Progress = Callable[[str], None]
Verify = Callable[[Image], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a build takes things from. `directory` has .deb and .tgz files; `offline` cuts its programs off the
    network; `fresh` uses nothing that is cached; `save` is filled with what was fetched, for another's `directory`."""

    directory: Path | None = None
    offline: bool = False
    fresh: bool = False
    save: Path | None = None


def guest_build() -> str:
    """The build of the guest code that is installed here, as it would be in an image built now."""
    return digest(read_sources())


def image_key(recipe: Recipe, machine: Architecture, build: str) -> str:
    scripts = hashlib.sha256(f"{INIT_SCRIPT}\0{init_script()}".encode()).hexdigest()
    return digest_of(
        {
            "format": FORMAT,
            "recipe": recipe.normalized(),
            "architecture": machine.debian,
            "build": build,
            "scripts": scripts,
        }
    )


def build_image(
    store: ImageStore,
    recipe: Recipe,
    *,
    architecture: str,
    verify: Verify | None = None,
    progress: Progress = lambda _: None,
    sources: Sources = Sources(),
) -> Image:
    """The image of a recipe with the guest code that is installed here, built unless it is in the store.

    Blocks, for a minute if everything must be made; call it from a thread. Needs root to build. `verify` is called
    with the image before it has its place (boot it; raise to refuse it). Raises ImageError; what is left of a failed
    build is its staging directory with the log, which the next build removes.
    """
    machine = table_row(architecture)
    key = image_key(recipe, machine, guest_build())
    with store.locked(key) as lock:
        found = None if sources.fresh else store.get(key)
        if found is not None and sources.save is None:
            return found
        check_machine()
        store.remove_abandoned()
        build = _Build(store, recipe, machine, sources, progress)
        with build.customized(lock) as base:
            if sources.save is not None:
                build.save_sources(base)
            if found is None:
                found = build.pack(key, base, lock, verify)
    return found


def check_machine() -> None:
    """Raises ImageError if this process or machine cannot build."""
    if os.geteuid() != 0:
        raise ImageError("building an image needs root: it installs packages in a tree of their own", hint="use sudo")
    if missing := missing_program(*PROGRAMS):
        raise ImageError(
            f"{missing} is not installed, and building an image needs it",
            hint="on Debian: apt-get install mmdebstrap squashfs-tools dpkg util-linux",
        )


@dataclass(frozen=True, slots=True)
class _Build:
    store: ImageStore
    recipe: Recipe
    machine: Architecture
    sources: Sources
    progress: Progress

    @contextlib.contextmanager
    def _layer(self, key: str, locks: tuple[int, ...], make: Callable[[Path, Commands], None]) -> Iterator[Path]:
        """A base, made by `make` in a staging directory unless it is cached; its lock is held."""
        final = self.store.base(key)
        with self.store.locked(key) as lock:
            if self.sources.fresh or not (final / COMPLETE).is_file():
                with self._staging(key, (*locks, lock)) as (staging, commands):
                    make(staging, commands)
                    publish(staging, final, whole_system=True)
            yield final

    @contextlib.contextmanager
    def _staging(self, key: str, locks: tuple[int, ...]) -> Iterator[tuple[Path, Commands]]:
        staging = self.store.staging(key)
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
        staging.chmod(0o755)
        yield staging, Commands(log=staging / LOG, offline=self.sources.offline, keep_open=locks)

    @contextlib.contextmanager
    def installed(self, *locks: int) -> Iterator[Path]:
        directory = self.sources.directory
        digest = packages.digest_of_sources(directory) if directory is not None else ""
        wanted = packages.package_set(self.recipe, self.machine, digest)

        def make(staging: Path, commands: Commands) -> None:
            since = time.time()
            packages.install(staging, wanted, commands, directory, self.progress)
            tidy(staging / "tree", since=since)

        with self._layer(self._packages_key(wanted), locks, make) as base:
            yield base

    def _packages_key(self, wanted: packages.PackageSet) -> str:
        return digest_of(
            {
                "format": FORMAT,
                "layer": "packages",
                "suite": wanted.suite,
                "mirrors": wanted.mirrors,
                "packages": wanted.packages,
                "architecture": wanted.architecture.debian,
                "sources": wanted.sources,
            }
        )

    @contextlib.contextmanager
    def customized(self, *locks: int) -> Iterator[Path]:
        with self.installed(*locks) as below:

            def make(staging: Path, commands: Commands) -> None:
                since = time.time()
                (staging / "sources").mkdir()
                tree = staging / "tree"
                commands.run(
                    ["cp", "--archive", "--reflink=auto", below / "tree", tree],
                    what="copying the tree",
                    timeout_s=COPY_S,
                )
                facts = json.loads((below / "base.json").read_text())
                version = facts["kernel"]["version"]
                customize.install_modules(tree, below / "kernel/modules" / version, version, commands)
                facts["npm"] = customize.customize(
                    tree, self.recipe, self.machine, npm_files=staging / "sources", commands=commands,
                    from_dir=self.sources.directory, progress=self.progress,
                )  # fmt: skip
                tidy(tree, since=since)
                facts["packages"] = packages.installed_packages(tree)
                facts["below"] = below.name
                (staging / "base.json").write_text(json.dumps(facts, indent=1))

            key = digest_of({"layer": "customized", "below": below.name, "recipe": self.recipe.normalized()})
            with self._layer(key, locks, make) as base:
                yield base

    def save_sources(self, base: Path) -> None:
        """Copy every file that was fetched for this image to where `--from` can take it."""
        target = self.sources.save
        if target is None:
            return
        target.mkdir(parents=True, exist_ok=True)
        for layer in (self.store.base(json.loads((base / "base.json").read_text())["below"]), base):
            for path in sorted((layer / "sources").iterdir()):
                shutil.copyfile(path, target / path.name)

    def pack(self, key: str, base: Path, lock: int, verify: Verify | None) -> Image:
        facts = json.loads((base / "base.json").read_text())
        below = self.store.base(facts["below"])
        with self._staging(key, (lock,)) as (staging, commands):
            since = time.time()
            self.progress("adding the guest's programs")
            build = install_guest_files(base / "tree")
            fix_times(base / "tree", since=since)
            self.progress("packing the root file system")
            pack_tree(base / "tree", staging / "rootfs.squashfs", commands)
            self.progress("extracting the kernel and packing the initramfs")
            self._write_kernel(staging, below / "kernel", facts["kernel"]["version"])
            manifest = self._manifest(staging, build, facts)
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            for name in (*ARTEFACTS, MANIFEST):
                (staging / name).chmod(0o644)  # a virtual machine runs as another user
            image = image_of(staging, key, manifest)
            if verify is not None:
                self.progress("booting it")
                verify(image)
            publish(staging, self.store.root / key)
            return image_of(self.store.root / key, key, manifest)

    def _write_kernel(self, staging: Path, kernel: Path, version: str) -> None:
        compressed = (kernel / "vmlinuz").read_bytes()
        if self.machine.vmlinux == "ELF":
            vmlinuz, vmlinux = compressed, elf_from_bzimage(compressed)
        else:
            vmlinux = arm64_image(compressed)
            # QEMU takes an Image and a gzip of one; older ones do not take an EFI zboot program
            vmlinuz = compressed if compressed.startswith(b"\x1f\x8b") else vmlinux
        (staging / "vmlinuz").write_bytes(vmlinuz)
        (staging / "vmlinux").write_bytes(vmlinux)
        modules = kernel / "modules" / version
        order = load_order(customize.index_of(modules))
        contents = [(module, plain_module(module.file, (modules / module.file).read_bytes())) for module in order]
        busybox = checked_busybox((kernel / "busybox").read_bytes(), self.machine.elf_machine)
        (staging / "initramfs").write_bytes(initramfs(busybox, contents))

    def _manifest(self, staging: Path, build: str, facts: dict[str, Any]) -> dict[str, Any]:
        artefacts = {}
        for name in ARTEFACTS:
            with open(staging / name, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            artefacts[name] = {"sha256": sha256, "size": (staging / name).stat().st_size}
        return {
            "format": FORMAT,
            "architecture": self.machine.name,
            "recipe": self.recipe.normalized(),
            "guest_build": build,
            "artefacts": artefacts,
            "digest": digest_of({name: found["sha256"] for name, found in artefacts.items()}),
            "kernel": {**facts["kernel"], "vmlinux": self.machine.vmlinux, "console": self.machine.console},
            "python": facts["packages"].get("python3-minimal", ""),
            "packages": facts["packages"],
            "npm": facts["npm"],
            "built_at": int(time.time()),
            "built_by": __version__,
        }


def pack_tree(tree: Path, target: Path, commands: Commands) -> None:
    """The tree as squashfs; the same bytes for the same tree. Raises BuildError."""
    commands.run(
        [
            *("mksquashfs", tree, target, "-noappend", "-no-progress", "-quiet", "-no-recovery"),
            *("-comp", "zstd", "-Xcompression-level", "3", "-mkfs-time", str(FIXED_TIME)),
        ],
        what="packing the root file system",
        timeout_s=PACK_S,
        hint="mksquashfs of squashfs-tools 4.4 or newer with zstd is needed",
    )
    if not target.is_file():
        raise BuildError("mksquashfs made no file", log=str(commands.log))
