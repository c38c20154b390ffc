"""`vm0 snapshot build/ls/show/rm`: the stopped virtual machines that sandboxes are restored from."""

from __future__ import annotations

import contextlib
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

from vm0.cli.config import Settings
from vm0.cli.errors import CliError, UsageError
from vm0.cli.local_sandboxes import Wanted
from vm0.cli.run_summary import time_words
from vm0.cli.setup_command import make_snapshot
from vm0.cli.steps import steps_for
from vm0.cli.table import print_facts, print_json, print_table
from vm0.cli.vm_preparation import asked, prepare_backend
from vm0.image import BuildOptions, ImageStore, guest_build
from vm0.runner.backends.snapshots import StoredSnapshot, remove_snapshot, stored_snapshots

MIB = 1024 * 1024
LABELS = {
    "image": "image digest", "build": "guest code", "vcpus": "vCPUs", "memory_mib": "memory", "disk_mib": "disk",
    "accelerator": "accelerator", "qemu": "QEMU", "host_cpu": "host CPU", "arguments": "machine",
}  # fmt: skip


def build(image: str, *, state_dir: pathlib.Path | None, as_json: bool) -> int:
    settings = Settings.from_environment()
    home = _home(state_dir, settings)
    wanted = Wanted(image=image)
    with contextlib.closing(steps_for(plain=settings.plain)) as steps:
        prepare_backend(home, wanted, steps, consent=asked, build=BuildOptions())
        facts = make_snapshot(home, wanted, steps)
    key = facts["start"].removeprefix("snapshot ")
    if as_json:
        print_json({"key": key, "directory": str(home / "snapshots" / key), **facts})
    else:
        print(home / "snapshots" / key)
    return 0


def list_snapshots(*, state_dir: pathlib.Path | None, as_json: bool) -> int:
    home = _home(state_dir, Settings.from_environment())
    snapshots, images = stored_snapshots(home / "snapshots"), _image_names(home)
    if as_json:
        print_json({"snapshots": [_document(found, images) for found in snapshots]})
    elif snapshots:
        header = ("KEY", "IMAGE", "VCPUS", "MEMORY", "DISK", "ACCEL", "SIZE", "MADE", "REMARK")
        print_table(header, (_row(found, images) for found in snapshots))
    else:
        print("no snapshots", file=sys.stderr)
    return 0


def show(key: str, *, state_dir: pathlib.Path | None, as_json: bool) -> int:
    home = _home(state_dir, Settings.from_environment())
    snapshot, images = found(home, key), _image_names(home)
    if as_json:
        print_json(_document(snapshot, images))
        return 0
    made_from = {LABELS.get(name, name): _value(name, value) for name, value in snapshot.made_from.items()}
    print_facts(
        {
            "key": snapshot.key,
            "directory": str(snapshot.folder),
            "image": _image_words(snapshot, images),
            **made_from,
            "size": _size_words(snapshot.disk_bytes),
            "made": time_words(int(snapshot.made_at * 1000)),
            "remark": _remark(snapshot, images) or "-",
        }
    )
    return 0


def remove(keys: list[str], *, old: bool, state_dir: pathlib.Path | None) -> int:
    if not keys and not old:
        raise UsageError("there is nothing to remove", hint="`vm0 snapshot ls` lists the keys")
    home = _home(state_dir, Settings.from_environment())
    chosen = [found(home, key) for key in keys]  # all are known before the first one goes
    if old:
        images = _image_names(home)
        chosen += [snapshot for snapshot in stored_snapshots(home / "snapshots") if _remark(snapshot, images)]
    for snapshot in {snapshot.key: snapshot for snapshot in chosen}.values():
        remove_snapshot(home / "snapshots", snapshot.key)
        print(f"removed {snapshot.key} ({_size_words(snapshot.disk_bytes)})", file=sys.stderr)
    return 0


def found(home: pathlib.Path, key: str) -> StoredSnapshot:
    """By key or its unique beginning. Raises CliError."""
    matching = [snapshot for snapshot in stored_snapshots(home / "snapshots") if snapshot.key.startswith(key)]
    if len(matching) > 1:
        raise CliError(f"{len(matching)} snapshots have keys that begin with {key!r}", hint="give more of the key")
    if not matching:
        raise CliError(f"there is no snapshot {key!r} in {home / 'snapshots'}", hint="`vm0 snapshot ls` lists them")
    return matching[0]


def _home(state_dir: pathlib.Path | None, settings: Settings) -> pathlib.Path:
    return state_dir.absolute() if state_dir is not None else settings.state_dir


def _image_names(home: pathlib.Path) -> dict[str, str]:
    """By the digest that a snapshot names its image with."""
    images = ImageStore(home / "images").list()
    return {image.digest: image.name for image in images if image.architecture == platform.machine()}


def _image_words(snapshot: StoredSnapshot, images: Mapping[str, str]) -> str:
    return images.get(snapshot.made_from.get("image", ""), "-")


def _remark(snapshot: StoredSnapshot, images: Mapping[str, str]) -> str:
    """Why nothing will start from it any more, as far as that can be told; else nothing."""
    if snapshot.problem:
        return "damaged"
    if snapshot.made_from.get("build") != guest_build():
        return "old guest code"
    return "" if snapshot.made_from.get("image") in images else "its image is gone"


def _document(snapshot: StoredSnapshot, images: Mapping[str, str]) -> dict[str, Any]:
    return {
        "key": snapshot.key, "directory": str(snapshot.folder), "recipe": _image_words(snapshot, images),
        "made_at": int(snapshot.made_at), "disk_bytes": snapshot.disk_bytes, "made_from": dict(snapshot.made_from),
        "remark": _remark(snapshot, images), "problem": snapshot.problem,
    }  # fmt: skip


def _row(snapshot: StoredSnapshot, images: Mapping[str, str]) -> tuple[str, ...]:
    facts = snapshot.made_from
    return (
        snapshot.key,
        _image_words(snapshot, images),
        facts.get("vcpus", "-"),
        _value("memory_mib", facts.get("memory_mib", "-")),
        _value("disk_mib", facts.get("disk_mib", "-")),
        facts.get("accelerator", "-"),
        _size_words(snapshot.disk_bytes),
        time_words(int(snapshot.made_at * 1000)),
        _remark(snapshot, images) or "-",
    )


def _value(name: str, value: str) -> str:
    return f"{value} MiB" if name.endswith("_mib") and value.isdigit() else value


def _size_words(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
