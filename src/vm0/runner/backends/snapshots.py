"""The store of snapshots, from outside: what is in it, and how to remove one. Making one is entering the factory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vm0.sandbox import SandboxError
from vm0.sandbox_qemu import snapshot

KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """`made_from` is everything that decides who can use it; empty, with the `problem`, if that cannot be read.
    `disk_bytes` is what it takes on the disk of this host."""

    key: str
    folder: Path
    made_from: Mapping[str, str]
    made_at: float
    disk_bytes: int
    problem: str = ""


def stored_snapshots(root: Path) -> list[StoredSnapshot]:
    """The newest first, damaged ones too. Nothing is loaded."""
    folders = [path for path in root.iterdir() if KEY.fullmatch(path.name)] if root.is_dir() else []
    return sorted(map(_stored, folders), key=lambda found: (-found.made_at, found.key))


def remove_snapshot(root: Path, key: str) -> None:
    """A runner that has it loaded goes on with what runs, and can start nothing new until it is started anew.

    Raises SandboxError while it is being made or loaded.
    """
    with _locked(root, key):
        (root / key / snapshot.COMPLETE).unlink(missing_ok=True)  # first: nobody takes half of it for a snapshot
        shutil.rmtree(root / key)


def _stored(folder: Path) -> StoredSnapshot:
    made_from: Mapping[str, str] = {}
    problem = ""
    try:
        made_from = snapshot.read_facts(folder, folder.name).made_from
    except snapshot.SnapshotError as exc:
        problem = str(exc)
    found = [path.stat() for path in folder.iterdir()]
    return StoredSnapshot(
        key=folder.name,
        folder=folder,
        made_from=made_from,
        made_at=folder.stat().st_mtime,
        disk_bytes=sum(stat.st_blocks * 512 for stat in found),
        problem=problem,
    )


@contextlib.contextmanager
def _locked(root: Path, key: str) -> Iterator[None]:
    """Hold the lock under which a factory makes or loads this snapshot."""
    fd = os.open(root / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxError(f"snapshot {key} is being made or loaded", hint="wait until that is done") from None
        yield
    finally:
        os.close(fd)
