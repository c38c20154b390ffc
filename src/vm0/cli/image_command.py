"""`vm0 image build/ls/show/rm`: the images in the state directory."""

from __future__ import annotations

import contextlib
import pathlib
import platform
import sys
from typing import Any

from vm0.cli.config import Settings
from vm0.cli.errors import CliError, UsageError
from vm0.cli.local_sandboxes import private_home
from vm0.cli.run_summary import time_words
from vm0.cli.steps import steps_for
from vm0.cli.table import print_facts, print_json, print_table
from vm0.cli.vm_preparation import verified_build
from vm0.image import BuildOptions, Image, ImageStore, guest_build, load_recipe

MIB = 1024 * 1024


def build(
    recipe: str,
    *,
    arch: str | None,
    offline: bool,
    from_dir: pathlib.Path | None,
    save_sources: pathlib.Path | None,
    fresh: bool,
    state_dir: pathlib.Path | None,
    as_json: bool,
) -> int:
    if from_dir is not None and not from_dir.is_dir():
        raise UsageError(f"{from_dir} is no directory", hint="--from takes one that --save-sources has filled")
    options = BuildOptions(from_dir=from_dir, offline=offline, fresh=fresh, save_to=save_sources)
    settings = Settings.from_environment()
    home = state_dir.absolute() if state_dir is not None else settings.state_dir
    with contextlib.closing(steps_for(plain=settings.plain)) as steps:
        image = verified_build(
            ImageStore(private_home(home) / "images"), load_recipe(recipe), architecture=arch or platform.machine(),
            home=home, steps=steps, options=options,
        )  # fmt: skip
    if as_json:
        print_json(_document(image))
    else:
        print(image.directory)
    return 0


def image_store(state_dir: pathlib.Path | None = None) -> ImageStore:
    home = state_dir.absolute() if state_dir is not None else Settings.from_environment().state_dir
    return ImageStore(home / "images")


def list_images(*, state_dir: pathlib.Path | None, as_json: bool) -> int:
    images = image_store(state_dir).list()
    if as_json:
        print_json({"images": [_document(image) for image in images]})
    elif images:
        header = ("KEY", "RECIPE", "ARCH", "KERNEL", "SIZE", "BUILT", "GUEST CODE")
        current = guest_build()
        print_table(header, (_row(image, current) for image in images))
    else:
        print("no images", file=sys.stderr)
    return 0


def show(name: str, *, state_dir: pathlib.Path | None, as_json: bool) -> int:
    image = found(image_store(state_dir), name)
    if as_json:
        print_json(_document(image))
        return 0
    manifest = image.manifest
    print_facts(
        {
            "key": image.key,
            "recipe": f"{image.name} ({manifest['recipe']['suite']})",
            "architecture": image.architecture,
            "directory": str(image.directory),
            "digest": image.digest,
            "guest code": f"{image.build} ({_guest_words(image, guest_build())})",
            "kernel": f"{manifest['kernel']['version']} ({manifest['kernel']['package']})",
            "python": manifest["python"],
            "packages": str(len(manifest["packages"])),
            **{f"npm {package}": version for package, version in manifest["npm"].items()},
            **{file: _size_words(artefact["size"]) for file, artefact in manifest["artefacts"].items()},
            "warmed with": "; ".join(image.warm) or "-",
            "built": time_words(manifest["built_at"] * 1000),
        }
    )
    return 0


def remove(keys: list[str], *, old: bool, cache: bool, state_dir: pathlib.Path | None) -> int:
    if not keys and not old and not cache:
        raise UsageError("there is nothing to remove", hint="`vm0 image ls` lists the keys")
    store = image_store(state_dir)
    images = [found(store, key, by_recipe=False) for key in keys]  # all are known before the first one goes
    if old:
        current = guest_build()
        images += [image for image in store.list() if image.build != current and image not in images]
    for image in images:
        store.remove(image.key)
        print(f"removed {image.key} ({image.name})", file=sys.stderr)
    if cache:
        count = store.remove_bases()
        print(f"removed {count} cached {'tree' if count == 1 else 'trees'}", file=sys.stderr)
    return 0


def found(store: ImageStore, name: str, *, by_recipe: bool = True) -> Image:
    """By key, its unique beginning, or, the newest one, by its recipe's name. Raises CliError."""
    images = store.list()
    by_key = [image for image in images if image.key.startswith(name)]
    if len(by_key) > 1:
        raise CliError(f"{len(by_key)} images have keys that begin with {name!r}", hint="give more of the key")
    named = [image for image in images if by_recipe and image.name == name]
    if not by_key and not named:
        raise CliError(f"there is no image {name!r} in {store.root}", hint="`vm0 image ls` lists them")
    return (by_key or named)[0]


def _document(image: Image) -> dict[str, Any]:
    return {"key": image.key, "directory": str(image.directory), **image.manifest}


def _row(image: Image, current: str) -> tuple[str, ...]:
    return (
        image.key,
        image.name,
        image.architecture,
        image.manifest["kernel"]["version"],
        _size_words(sum(artefact["size"] for artefact in image.manifest["artefacts"].values())),
        time_words(image.manifest["built_at"] * 1000),
        _guest_words(image, current),
    )


def _guest_words(image: Image, current: str) -> str:
    return "current" if image.build == current else "old"


def _size_words(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
