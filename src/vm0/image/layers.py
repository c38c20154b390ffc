"""The two cached trees below an image: installed packages, and on top of a copy of them what the recipe adds.

Each is a base in the store, named by what went into it, made in a staging directory while its lock is held.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm0.image import customize, packages
from vm0.image.architectures import Architecture
from vm0.image.command import Commands
from vm0.image.keys import FORMAT, digest_of
from vm0.image.recipe import Recipe
from vm0.image.store import COMPLETE, ImageStore, publish
from vm0.image.tree import tidy

FACTS = "base.json"
LOG = "build.log"
COPY_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Where a build takes things from. `from_dir` has .deb and .tgz files to use instead of the network; `offline` cuts
    the programs of the build off the network; `fresh` uses nothing that is cached; `save_to` is a directory that gets
    a copy of all that was fetched, as `from_dir` takes it."""

    from_dir: Path | None = None
    offline: bool = False
    fresh: bool = False
    save_to: Path | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A complete layer, while its lock is held. `facts` are versions."""

    directory: Path
    facts: dict[str, Any]

    @property
    def tree(self) -> Path:
        return self.directory / "tree"

    @property
    def sources(self) -> Path:
        return self.directory / "sources"

    @property
    def kernel(self) -> Path:
        """vmlinuz, busybox and modules; of the lower layer only."""
        return self.directory / "kernel"

    @property
    def modules(self) -> Path:
        return self.kernel / "modules" / str(self.facts["kernel"]["version"])


@dataclass(frozen=True, slots=True)
class Layers:
    """What the layers of one image are made with."""

    store: ImageStore
    recipe: Recipe
    machine: Architecture
    options: BuildOptions
    progress: Callable[[str], None]

    @contextlib.contextmanager
    def both(self, *locks: int) -> Iterator[tuple[Base, Base]]:
        """(installed, customized), made unless they are cached. `locks` are the caller's, held by the programs too."""
        with self._installed(*locks) as installed, self._customized(installed, *locks) as customized:
            yield installed, customized

    @contextlib.contextmanager
    def staging(self, key: str, *locks: int) -> Iterator[tuple[Path, Commands]]:
        """An empty directory for what will have this key, whose lock the caller holds. It stays if the build fails."""
        staging = self.store.staging(key)
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
        staging.chmod(0o755)
        yield staging, Commands(log=staging / LOG, offline=self.options.offline, keep_open=locks)

    @contextlib.contextmanager
    def _layer(
        self, key: str, locks: tuple[int, ...], make: Callable[[Path, Commands], dict[str, Any]]
    ) -> Iterator[Base]:
        final = self.store.base(key)
        waiting = lambda: self.progress("waiting for another process that builds with the same packages")  # noqa: E731
        with self.store.locked(key, waiting=waiting) as lock:
            if self.options.fresh or not (final / COMPLETE).is_file():
                with self.staging(key, *locks, lock) as (staging, commands):
                    facts = make(staging, commands)
                    (staging / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
                    publish(staging, final, whole_system=True)
            yield Base(final, json.loads((final / FACTS).read_text(encoding="utf-8")))

    @contextlib.contextmanager
    def _installed(self, *locks: int) -> Iterator[Base]:
        from_dir = self.options.from_dir
        wanted = packages.package_set(
            self.recipe, self.machine, packages.digest_of_files(from_dir, "*.deb") if from_dir is not None else ""
        )

        def make(staging: Path, commands: Commands) -> dict[str, Any]:
            since = time.time()
            facts = packages.install(staging, wanted, commands, from_dir, self.progress)
            tidy(staging / "tree", since=since)
            return facts

        with self._layer(installed_key(wanted), locks, make) as base:
            yield base

    @contextlib.contextmanager
    def _customized(self, below: Base, *locks: int) -> Iterator[Base]:
        def make(staging: Path, commands: Commands) -> dict[str, Any]:
            since = time.time()
            tree, files = staging / "tree", staging / "sources"
            files.mkdir()
            commands.run(
                ["cp", "--archive", "--reflink=auto", below.tree, tree], what="copying the tree", timeout_s=COPY_S
            )
            customize.install_modules(tree, below.modules, commands)
            npm = customize.customize(
                tree, self.recipe, self.machine, npm_files=files, from_dir=self.options.from_dir, commands=commands,
                progress=self.progress,
            )  # fmt: skip
            tidy(tree, since=since)
            return {**below.facts, "packages": packages.installed_packages(tree), "npm": npm}

        from_dir = self.options.from_dir if self.recipe.npm else None
        key = digest_of(
            {
                "layer": "customized",
                "below": below.directory.name,
                "recipe": self.recipe.normalized(),
                "sources": packages.digest_of_files(from_dir, "*.tgz") if from_dir is not None else "",
            }
        )
        with self._layer(key, locks, make) as base:
            yield base


def installed_key(wanted: packages.PackageSet) -> str:
    return digest_of(
        {
            "format": FORMAT,
            "layer": "installed",
            "suite": wanted.suite,
            "mirrors": wanted.mirrors,
            "packages": wanted.packages,
            "architecture": wanted.architecture.debian,
            "sources": wanted.sources,
        }
    )


def save_sources(bases: tuple[Base, ...], target: Path) -> None:
    """Copy every file that was fetched to where `BuildOptions.from_dir` can take it."""
    target.mkdir(parents=True, exist_ok=True)
    for base in bases:
        for path in sorted(base.sources.iterdir()):
            shutil.copyfile(path, target / path.name)
