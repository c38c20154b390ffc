"""A stopped VM in a folder, from which any number of VMs start: memory, device state, disk, and what they belong to.

::

    snapshots/KEY/memory         RAM, sparse
                  state          devices, as QEMU migrates them (about half a megabyte: RAM is not in it)
                  disk.ext4      the writable disk as it was at that moment
                  snapshot.json  facts, sizes and digests
                  complete       the marker, written last

Loaded, the memory is sealed and the state is in memory too; both are shared by every VM that starts from them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vm0.microvm import memory, sparse
from vm0.sandbox import SandboxError

FORMAT = 1
MEMORY, STATE, DISK, FACTS, COMPLETE = "memory", "state", "disk.ext4", "snapshot.json", "complete"
MAX_STATE_BYTES = 64 * 1024 * 1024


class SnapshotError(SandboxError):
    """a snapshot cannot be used"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a VM of the snapshot must know, and what tells whether the files are what was written."""

    key: str
    kernel_parameters: str  # of the VM that became the snapshot: part of its machine
    build: str  # of the guest's code
    memory_bytes: int  # of RAM
    memory_data_bytes: int  # of it, not holes
    state_sha256: str
    disk_bytes: int
    made_from: Mapping[str, str]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A loaded one; `close` frees its memory once no VM maps it any more."""

    facts: Facts
    disk: Path
    memory: int
    state: int

    def open_state(self) -> int:
        """A descriptor at the start of the state, the caller's."""
        return os.open(f"/proc/self/fd/{self.state}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)


def snapshot_key(made_from: Mapping[str, str]) -> str:
    """Names a snapshot by everything that decides whether a VM can be restored from it."""
    text = json.dumps({"format": FORMAT, **made_from}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(folder: Path, key: str) -> Snapshot:
    """Blocking; the time is that of copying the used part of the memory. Raises SnapshotError with what is wrong:
    missing, truncated, foreign, damaged."""
    facts = read_facts(folder, key)
    try:
        state_bytes = (folder / STATE).read_bytes()
        if hashlib.sha256(state_bytes).hexdigest() != facts.state_sha256:
            raise SnapshotError(f"snapshot {folder}: {STATE} is not what was written")
        _check_sizes(folder, facts)
        ram = memory.load(folder / MEMORY)
    except OSError as exc:
        raise SnapshotError(f"snapshot {folder}: {exc}") from exc
    try:
        state = _in_memory(state_bytes)
    except OSError as exc:
        os.close(ram)
        raise SnapshotError(f"snapshot {folder}: {exc}") from exc
    return Snapshot(facts, folder / DISK, ram, state)


def read_facts(folder: Path, key: str) -> Facts:
    """Without loading it. Raises SnapshotError."""
    if not (folder / COMPLETE).exists():
        raise SnapshotError(f"there is no complete snapshot in {folder}")
    try:
        facts = Facts(**json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError) as exc:
        raise SnapshotError(f"snapshot {folder}: {FACTS} cannot be read: {exc}") from exc
    if facts.format != FORMAT:
        raise SnapshotError(f"snapshot {folder} has format {facts.format}, this version reads {FORMAT}")
    if facts.key != key:
        raise SnapshotError(f"snapshot {folder} is of another machine or image ({facts.key}, not {key})")
    return facts


def save(
    folder: Path,
    *,
    ram: int,
    state: bytes,
    disk: Path,
    kernel_parameters: str,
    build: str,
    made_from: Mapping[str, str],
) -> None:
    """Write a stopped VM into a new folder, complete or not at all; blocking. Raises SnapshotError."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True, mode=0o700)
        written = memory.save(ram, staging / MEMORY)
        sparse.clone_file(disk, staging / DISK)
        facts = facts_of(
            ram=ram, state=state, disk=disk, kernel_parameters=kernel_parameters, build=build, made_from=made_from,
            memory_data_bytes=written,
        )  # fmt: skip
        _write_synced(staging / STATE, state)
        _write_synced(staging / FACTS, json.dumps(dataclasses.asdict(facts), indent=2).encode())
        _sync(staging / DISK)
        _write_synced(staging / COMPLETE, b"")
        _sync(staging)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(staging, folder)
        _sync(folder.parent)
    except OSError as exc:
        shutil.rmtree(staging, ignore_errors=True)
        raise SnapshotError(f"snapshot {folder} cannot be written: {exc}", hint="is there space left?") from exc


def facts_of(
    *,
    ram: int,
    state: bytes,
    disk: Path,
    kernel_parameters: str,
    build: str,
    made_from: Mapping[str, str],
    memory_data_bytes: int = 0,
) -> Facts:
    """Of these parts. Raises OSError."""
    return Facts(
        key=snapshot_key(made_from),
        kernel_parameters=kernel_parameters,
        build=build,
        memory_bytes=os.fstat(ram).st_size,
        memory_data_bytes=memory_data_bytes,
        state_sha256=hashlib.sha256(state).hexdigest(),
        disk_bytes=disk.stat().st_size,
        made_from=dict(made_from),
    )


def in_memory(ram: int, state: bytes, disk: Path, facts: Facts) -> Snapshot:
    """A snapshot that is never written, of memory that it takes over and seals. Raises OSError."""
    memory.seal(ram)
    return Snapshot(facts, disk, ram, _in_memory(state))


def state_file() -> int:
    """An empty file without a name for QEMU to write its state into; the caller's."""
    return os.memfd_create("vm0-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def state_of(fd: int) -> bytes:
    """What was written. Raises SnapshotError for what cannot be a state without RAM in it."""
    size = os.fstat(fd).st_size
    if not 0 < size <= MAX_STATE_BYTES:
        raise SnapshotError(f"QEMU wrote a state of {size} bytes, the limit is {MAX_STATE_BYTES}")
    return os.pread(fd, size, 0)


def _in_memory(data: bytes) -> int:
    fd = state_file()
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memory.SEALS)
    return fd


def _check_sizes(folder: Path, facts: Facts) -> None:
    for name, size in ((MEMORY, facts.memory_bytes), (DISK, facts.disk_bytes)):
        found = (folder / name).stat().st_size
        if found != size:
            raise SnapshotError(f"snapshot {folder}: {name} has {found} bytes, {size} were written")
    with open(folder / MEMORY, "rb") as file:
        found = sparse.data_bytes(file.fileno())
    if found < facts.memory_data_bytes:
        raise SnapshotError(
            f"snapshot {folder}: {MEMORY} holds {found} bytes of data, {facts.memory_data_bytes} were written"
        )


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
