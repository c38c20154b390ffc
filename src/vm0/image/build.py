"""Builds an image: packages, what the recipe puts on top, the guest's programs; then kernel, initramfs and squashfs.

Three layers, each cached by what went into it, so that a change costs only what lies above it: installed packages (half
a minute), the customized tree (seconds), the packed image (seconds).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from vm0.image.architectures import architecture as table_row
from vm0.image.artefacts import link_kernel, manifest_of, write_initramfs, write_rootfs
from vm0.image.command import missing_program
from vm0.image.errors import ImageError
from vm0.image.guest_files import GuestCode, install_guest_files
from vm0.image.keys import image_key
from vm0.image.layers import Base, BuildOptions, Layers, save_sources
from vm0.image.recipe import Recipe
from vm0.image.store import ARTEFACTS, MANIFEST, Image, ImageStore, image_of, publish
from vm0.image.tree import fix_times

PROGRAMS = {  # each with the Debian package that has it
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "chroot": "coreutils",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "tar": "tar",
}

Progress = Callable[[str], None]
Verify = Callable[[Image], None]


def guest_build() -> str:
    """The build of the guest code that is installed here, as it would be in an image built now."""
    return GuestCode().build


def build_image(
    store: ImageStore,
    recipe: Recipe,
    *,
    architecture: str,
    verify: Verify | None = None,
    progress: Progress = lambda _: None,
    options: BuildOptions | None = None,
) -> Image:
    """The image of a recipe with the guest code that is installed here, built unless it is in the store.

    Blocks, for a minute if everything must be made; call it from a thread. Needs root to build. `verify` is called
    with the image before it has its place (boot it; raise to refuse it). Raises ImageError; what is left of a failed
    build is its staging directory with the log, which the next build removes.
    """
    options = options or BuildOptions()
    code = GuestCode()
    key = image_key(recipe, architecture, code.build)
    if (found := _cached(store, key, options)) is not None:
        return found
    check_machine()
    with store.locked(key, waiting=lambda: progress("waiting for another process that builds this")) as lock:
        found = None if options.fresh else store.get(key)  # perhaps made by who had the lock
        if found is not None and options.save_to is None:
            return found
        store.remove_abandoned()
        layers = Layers(store, recipe, table_row(architecture), options, progress)
        with layers.both(lock) as bases:
            if options.save_to is not None:
                save_sources(bases, options.save_to)
            return found or _packed(key, code, layers, bases, lock, verify)


def _cached(store: ImageStore, key: str, options: BuildOptions) -> Image | None:
    return None if options.fresh or options.save_to is not None else store.get(key)


def check_machine() -> None:
    """Raises ImageError if this process or machine cannot build."""
    if os.geteuid() != 0:
        raise ImageError(
            "building an image needs root: the packages are installed in a tree that belongs to root",
            hint="run it with sudo",
        )
    if missing := missing_program(*PROGRAMS):
        needed = " ".join(sorted(set(PROGRAMS.values())))
        raise ImageError(
            f"building an image needs {missing}, which is not installed", hint=f"on Debian: apt-get install {needed}"
        )


def _packed(
    key: str, code: GuestCode, layers: Layers, bases: tuple[Base, Base], lock: int, verify: Verify | None
) -> Image:
    installed, customized = bases
    progress, machine = layers.progress, layers.machine
    with layers.staging(key, lock) as (staging, commands):
        since = time.time()
        progress("adding the guest's programs")
        install_guest_files(customized.tree, code)
        fix_times(customized.tree, since=since)
        progress("packing the root file system")
        write_rootfs(staging, customized.tree, commands)
        progress("packing the initramfs")
        link_kernel(staging, installed)
        write_initramfs(staging, installed, machine)
        manifest = manifest_of(staging, recipe=layers.recipe, machine=machine, build=code.build, facts=customized.facts)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for name in (*ARTEFACTS, MANIFEST):
            (staging / name).chmod(0o644)  # a virtual machine runs as another user
        if verify is not None:
            progress("booting it")
            verify(image_of(staging, key, manifest))
        publish(staging, layers.store.root / key)
    return image_of(layers.store.root / key, key, manifest)
