"""What one VM has of the host, from before its QEMU starts until after it ended: namespace, user, folder, disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vm0.microvm.disk import DiskPool
from vm0.microvm.finishing import to_the_end
from vm0.microvm.netns import Namespace, NamespacePool
from vm0.microvm.netns.plan import NAMESPACES, Slot
from vm0.sandbox_common import cgroups

# One user per namespace, in a range that neither people nor systemd's containers use; nothing else may run as them.
FIRST_UID = 1_886_000_000
PID_FILE = "qemu.pid"
DISK_FILE = "disk.ext4"


def uid_of(slot: Slot) -> int:
    """The user of the VM in this place."""
    return FIRST_UID + slot.pool * NAMESPACES + slot.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Belongs to one VM at a time; `Seats.release` takes it back."""

    name: str
    namespace: Namespace
    uid: int
    folder: Path
    cgroup: Path | None

    @property
    def disk(self) -> Path:
        return self.folder / DISK_FILE

    @property
    def pid_file(self) -> Path:
        return self.folder / PID_FILE


class Seats:
    """Gives out seats below `folder`, and a cgroup each below `cgroup` where the host has them."""

    def __init__(self, folder: Path, namespaces: NamespacePool, cgroup: Path | None) -> None:
        self._folder, self._namespaces, self._cgroup = folder, namespaces, cgroup

    async def take(self, name: str, disks: DiskPool) -> Seat:
        """Raises SandboxError or OSError; then nothing is left of it."""
        namespace = await self._namespaces.acquire()
        seat = Seat(
            name=name,
            namespace=namespace,
            uid=uid_of(namespace.slot),
            folder=self._folder / name,
            cgroup=self._cgroup / name if self._cgroup else None,
        )
        try:
            seat.folder.mkdir(mode=0o700)
        except BaseException:  # somebody else's folder and cgroup, perhaps: not ours to remove
            await to_the_end(self._namespaces.release(namespace))
            raise
        try:
            if seat.cgroup is not None:
                seat.cgroup.mkdir()
            await disks.take(seat.disk)
            os.chown(seat.disk, seat.uid, seat.uid)
        except BaseException:
            await to_the_end(self.release(seat))
            raise
        return seat

    async def release(self, seat: Seat) -> None:
        """The VM must have ended. Idempotent; raises what hinders, after trying the rest."""
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._namespaces.release, seat.namespace)
            undo.push_async_callback(asyncio.to_thread, shutil.rmtree, seat.folder, ignore_errors=True)
            if seat.cgroup is not None:
                undo.push_async_callback(cgroups.remove, seat.cgroup)
