"""The writable disks of VMs: sparse ext4 files, copied from one template, some of them in advance."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import uuid
from pathlib import Path

from vm0.microvm import sparse
from vm0.microvm.finishing import in_thread
from vm0.sandbox import SandboxError

log = logging.getLogger("vm0.microvm")

MKFS_S = 60.0
READY_DISKS = 2
REFILL_DELAY_S = 0.5  # after one was taken: who took it starts a VM now, and wants the processor and the disk
MIB = 1024 * 1024
# No journal: the disk lives as long as its VM, so there is nothing to replay. The inode tables are filled when needed.
MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard")


class DiskError(SandboxError):
    """a disk cannot be made"""


def make_disk(path: Path, size_mib: int) -> None:
    """An empty file system in a new sparse file. Blocking, about 20 ms. Raises DiskError; then nothing is there."""
    try:
        with open(path, "xb") as file:
            file.truncate(size_mib * MIB)
    except FileExistsError as exc:
        raise DiskError(f"disk {path} exists already") from exc
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise DiskError(f"disk {path}: {exc}", hint="is there space left?") from exc
    try:
        _format(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _format(path: Path) -> None:
    try:
        done = subprocess.run([*MKFS, str(path)], capture_output=True, timeout=MKFS_S, check=False)
    except FileNotFoundError as exc:
        raise DiskError(f"{MKFS[0]} is not installed", hint="install e2fsprogs, or let `vm0 setup` do it") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DiskError(f"disk {path}: {exc}", hint="is there space left?") from exc
    if done.returncode != 0:
        raise DiskError(f"mkfs.ext4 {path}: {done.stderr.decode(errors='replace').strip()}")


class DiskPool:
    """Copies of `template` in `folder`, which is the pool's own; a few are made in advance. `close` when done."""

    def __init__(self, template: Path, folder: Path, *, ready: int = READY_DISKS) -> None:
        self._template, self._folder, self._wanted = template, folder, ready
        self._ready: list[Path] = []
        self._filling: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None

    async def take(self, target: Path) -> None:
        """Put a disk at `target` (on the same file system). Raises DiskError."""
        try:
            if self._ready:
                os.rename(self._ready.pop(), target)
            else:
                await in_thread(
                    lambda: sparse.clone_file(self._template, target), "disk", discard=lambda _: target.unlink()
                )
        except OSError as exc:
            raise DiskError(f"disk {target}: {exc}", hint="is there space left?") from exc
        if self._later is None and self._wanted:
            self._later = asyncio.get_running_loop().call_later(REFILL_DELAY_S, self.fill)

    def fill(self) -> None:
        """Make what is missing, in the background."""
        self._later = None
        if len(self._ready) < self._wanted and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill(), name="disk pool")

    async def close(self) -> None:
        """Remove what nobody took. Idempotent."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._filling is not None:
            await asyncio.wait({self._filling})
            self._filling = None
        while self._ready:
            self._ready.pop().unlink(missing_ok=True)

    async def _fill(self) -> None:
        while len(self._ready) < self._wanted:
            path = self._folder / f"ready-{uuid.uuid4().hex[:12]}.ext4"
            try:
                await asyncio.to_thread(sparse.clone_file, self._template, path)
            except OSError as exc:  # `take` makes its own, and says what is wrong
                log.warning("no disk in advance: %s", exc, extra={"action": "disk_pool_failed"})
                return
            self._ready.append(path)
