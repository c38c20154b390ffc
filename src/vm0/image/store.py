"""The images of a machine, each in a directory named by the digest of what it was made from.

    <root>/<key>/      vmlinuz vmlinux initramfs rootfs.squashfs image.json, and `complete`, which is written last
    <root>/bases/<key>/  trees from which images are packed, so that new guest code does not install packages again
    <root>/staging/    what is being built; belongs to whoever holds the lock of the same name
    <root>/locks/

An image without `complete`, or whose files are not of the sizes in image.json, is not used and is built anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm0.image.errors import ImageError
from vm0.image.keys import KEY, image_key
from vm0.image.recipe import Recipe

ARTEFACTS = ("vmlinuz", "vmlinux", "initramfs", "rootfs.squashfs")
MANIFEST = "image.json"
COMPLETE = "complete"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`build` names the guest code in it. `manifest` is image.json."""

    directory: Path
    key: str
    build: str
    architecture: str
    manifest: dict[str, Any]

    @property
    def vmlinuz(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def vmlinux(self) -> Path:
        """Uncompressed: an ELF file for x86_64, an Image for aarch64."""
        return self.directory / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs.squashfs"

    @property
    def digest(self) -> str:
        """Of the artefacts' contents. Two images with one key may differ in it, if the archive had newer packages for
        the second: what depends on the bytes (a snapshot) names them by this."""
        return str(self.manifest["digest"])

    @property
    def name(self) -> str:
        return str(self.manifest["recipe"]["name"])

    @property
    def warm(self) -> tuple[str, ...]:
        """Commands to run in the first machine, before its snapshot is taken."""
        return tuple(self.manifest["warm"])


class ImageStore:
    """Safe for several processes: what builds or removes holds the key's lock, and an image appears whole or not."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, recipe: Recipe, architecture: str, build: str) -> Image | None:
        """The image of this recipe and guest build, if it is here."""
        return self.get(image_key(recipe, architecture, build))

    def get(self, key: str) -> Image | None:
        """None if there is none, or it is incomplete or damaged. Reads one file, compares sizes of the others."""
        return read_image(self.root / key, key) if KEY.fullmatch(key) else None

    def list(self) -> list[Image]:
        """The newest first."""
        keys = [path.name for path in self.root.iterdir() if KEY.fullmatch(path.name)] if self.root.is_dir() else []
        found = [image for key in keys if (image := self.get(key)) is not None]
        return sorted(found, key=lambda image: (-image.manifest.get("built_at", 0), image.key))

    def remove(self, key: str) -> bool:
        """Whether there was something, complete or not. Raises ImageError while it is being built.

        Programs that have its files open, such as running machines, keep them.
        """
        path = self.root / key
        if not KEY.fullmatch(key) or not path.is_dir():
            return False
        with self.locked(key, wait=False):
            with contextlib.suppress(FileNotFoundError):
                (path / COMPLETE).unlink()  # first: nobody takes half of it for an image
            shutil.rmtree(path)
        return True

    def remove_bases(self) -> int:
        """Remove the cached trees that nobody is building with; returns how many."""
        self.prepare()
        count = 0
        for path in sorted((self.root / "bases").iterdir()):
            with contextlib.suppress(ImageError):
                self.remove_base(path.name)
                count += 1
        return count

    def remove_base(self, key: str) -> None:
        """Remove one cached tree. Raises ImageError while somebody builds with it."""
        with self.locked(key, wait=False):
            with contextlib.suppress(FileNotFoundError):
                (self.base(key) / COMPLETE).unlink()
            shutil.rmtree(self.base(key))

    def staging(self, key: str) -> Path:
        return self.root / "staging" / key

    def base(self, key: str) -> Path:
        return self.root / "bases" / key

    def prepare(self) -> None:
        """Make the directories. Trees of guests hold programs that become root: nobody else may look into them."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o755)
        for name in ("bases", "staging", "locks"):
            (self.root / name).mkdir(exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def locked(self, key: str, *, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
        """Hold a key's lock, whose descriptor programs may inherit to hold it too. `waiting` is called if it is taken.

        Raises ImageError if it is taken and we do not wait.
        """
        self.prepare()
        path = self.root / "locks" / key
        fd = _locked(path, wait, waiting)
        try:
            yield fd
        finally:
            if not any(place.exists() for place in (self.root / key, self.base(key), self.staging(key))):
                path.unlink(missing_ok=True)  # as long as we hold it: who waits for it looks whether it is still there
            os.close(fd)

    def remove_abandoned(self) -> None:
        """Remove what builds left that did not come to their end; those under way hold their locks."""
        for key in sorted(path.name for name in ("staging", "locks") for path in (self.root / name).iterdir()):
            with contextlib.suppress(ImageError), self.locked(key, wait=False):
                shutil.rmtree(self.staging(key), ignore_errors=True)


def _locked(path: Path, wait: bool, waiting: Callable[[], None]) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise ImageError(f"{path.name} is being built", hint="wait until that is done") from None
                waiting()
                fcntl.flock(fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was removed by whoever had it: another one has its name by now


def read_image(directory: Path, key: str) -> Image | None:
    """The image in a directory, None unless it is complete and its files have the sizes that they should."""
    try:
        if not (directory / COMPLETE).is_file():
            return None
        with open(directory / MANIFEST, "rb") as file:
            manifest = json.loads(file.read(MAX_MANIFEST_BYTES))
        sizes = {name: manifest["artefacts"][name]["size"] for name in ARTEFACTS}
        if any((directory / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return image_of(directory, key, manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def image_of(directory: Path, key: str, manifest: dict[str, Any]) -> Image:
    return Image(
        directory=directory,
        key=key,
        build=manifest["guest_build"],
        architecture=manifest["architecture"],
        manifest=manifest,
    )


def publish(staging: Path, final: Path, *, whole_system: bool = False) -> None:
    """Move a finished directory to its place: its files are on the disk before it has its name, `complete` comes last.

    `whole_system` writes all that the machine has in memory, which is quicker for ten thousand files.
    """
    if whole_system:
        os.sync()
    else:
        for path in sorted(staging.iterdir()):
            sync(path)
        sync(staging)
    if final.exists():
        with contextlib.suppress(FileNotFoundError):
            (final / COMPLETE).unlink()
        shutil.rmtree(final)
    os.rename(staging, final)
    sync(final.parent)
    (final / COMPLETE).touch(mode=0o644)
    sync(final / COMPLETE)
    sync(final)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
