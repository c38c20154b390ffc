"""Sandboxes that a command starts on this machine: which ones are wanted, and where their runner keeps its state."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vm0.cli.errors import CliError

if TYPE_CHECKING:
    from vm0.runner.config import RunnerConfig

RUNNER_SLOTS = 256  # commands with a runner, or with sandboxes of their own, at the same time on one VM0_HOME
VM_BACKENDS = ("auto", "qemu")
IMAGE_OF_AGENT = {"claude-code": "claude-code"}  # recipes; every other agent has what it needs in `base`
DEFAULT_IMAGE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`image` names a recipe, or an image by its key; it is for backends with virtual machines."""

    backend: str = "auto"
    image: str = DEFAULT_IMAGE


def local_config(home: pathlib.Path, state_dir: pathlib.Path, wanted: Wanted, **settings: Any) -> RunnerConfig:
    """Settings for a runner, or only its factory, in this process; the server is nobody's unless it is named."""
    from vm0.runner.config import RunnerConfig, Secret

    known: dict[str, object] = {
        "server_url": "http://127.0.0.1:1", "token": Secret("none"), "state_dir": state_dir,
        "backend": wanted.backend, "image": wanted.image, "max_concurrent": 1,
    }  # fmt: skip
    return RunnerConfig.load(flags={**known, **settings}, defaults=store_defaults(home))


def store_defaults(home: pathlib.Path) -> dict[str, object]:
    """Where images and snapshots of this VM0_HOME are, unless the runner's settings say otherwise."""
    return {"images_dir": home / "images", "snapshots_dir": home / "snapshots"}


def private_home(home: pathlib.Path) -> pathlib.Path:
    """The directory, made for us alone if it is missing: virtual machines are other users and open nothing in it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def slot_dir(home: pathlib.Path, slot: int) -> pathlib.Path:
    return home / "runner" / f"local-{slot}"


@contextlib.contextmanager
def free_state_dir(home: pathlib.Path) -> Iterator[pathlib.Path]:
    """The first runner directory of this VM0_HOME that nobody uses, ours within. What a crashed command left in it goes
    when a factory is entered there."""
    from vm0.runner.errors import StateDirectoryInUse
    from vm0.runner.state_directory import StateDirectory

    private_home(home)
    for slot in range(RUNNER_SLOTS):
        path = slot_dir(home, slot)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(StateDirectory(path).owned())
            except StateDirectoryInUse:
                continue
            yield path
            return
    raise CliError(f"{RUNNER_SLOTS} commands use {home} already", hint="wait for some of them to end")
