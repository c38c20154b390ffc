"""Makes process sandboxes below one root directory and removes what a crashed owner left there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from vm0.guest_bundle import GuestBundle, build_bundle
from vm0.sandbox import BackendUnavailable, IsolationTier, Sandbox, SandboxConfig, SandboxError
from vm0.sandbox_process import cgroups
from vm0.sandbox_process.sandbox import ProcessSandbox, kill_guest_of

log = logging.getLogger("vm0.sandbox_process")


class ProcessSandboxFactory:
    """`root` (made, 0700) holds the sandboxes' folders, `root/cache` the guest bundle. One factory per root at a time:
    a second one is refused. Sockets are in a short directory of their own, because their paths have 107 bytes."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._sandboxes: dict[str, ProcessSandbox] = {}
        self._lock: int | None = None
        self._bundle: GuestBundle | None = None
        self._cgroup: Path | None = None
        self._sockets = socket_directory(self._root)

    @property
    def backend(self) -> str:
        return "process"

    @property
    def isolation(self) -> IsolationTier:
        return IsolationTier.PROCESS

    async def __aenter__(self) -> ProcessSandboxFactory:
        make_private(self._root)
        self._lock = _locked(self._root / "lock")
        try:
            make_private(self._sockets)
            parent = cgroups.writable_parent()
            self._cgroup = parent / f"vm0-{_short_hash(self._root)}" if parent else None
            await self._reconcile()
            if self._cgroup is not None:
                self._cgroup.mkdir(exist_ok=True)
            self._bundle = await asyncio.to_thread(build_bundle, self._root / "cache")
        except BaseException:
            self._unlock()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for sandbox in list(self._sandboxes.values()):
            await self.destroy(sandbox)
        if self._cgroup is not None:
            await cgroups.remove(self._cgroup)
        with contextlib.suppress(OSError):
            self._sockets.rmdir()
        self._unlock()

    async def create(self, config: SandboxConfig) -> Sandbox:
        if self._bundle is None:
            raise SandboxError("the factory has not been entered")
        if config.sandbox_id in self._sandboxes:
            raise SandboxError(f"sandbox {config.sandbox_id} exists already")
        sandbox = ProcessSandbox(
            config,
            folder=self._root / "sandboxes" / config.sandbox_id,
            sockets=self._sockets / config.sandbox_id,
            cgroup=self._cgroup / config.sandbox_id if self._cgroup else None,
            bundle=self._bundle,
        )
        self._sandboxes[config.sandbox_id] = sandbox
        try:
            sandbox.allocate()
        except OSError as exc:
            await self.destroy(sandbox)
            raise SandboxError(f"sandbox {config.sandbox_id}: {exc}") from exc
        return sandbox

    async def destroy(self, sandbox: Sandbox) -> None:
        owned = self._sandboxes.get(sandbox.sandbox_id)
        if owned is sandbox:
            await asyncio.shield(self._destroy(owned))

    def describe(self) -> Mapping[str, str]:
        containment = f"cgroup {self._cgroup}" if self._cgroup else "process groups (no writable cgroup v2 hierarchy)"
        return {"backend": "process", "isolation": "none", "containment": containment, "python": sys.executable}

    async def _destroy(self, sandbox: ProcessSandbox) -> None:
        await sandbox.kill()
        await sandbox.release()
        self._sandboxes.pop(sandbox.sandbox_id, None)

    async def _reconcile(self) -> None:
        """We hold the lock, so whatever is here belongs to nobody: end it and remove it."""
        folder = self._root / "sandboxes"
        make_private(folder)
        for leftover in sorted(folder.iterdir()):
            log.warning("removing sandbox %s of a crashed owner", leftover.name, extra={"action": "sandbox_reclaimed"})
            await kill_guest_of(leftover)
        if self._cgroup is not None:
            await cgroups.remove(self._cgroup)
        for path in (*folder.iterdir(), *self._sockets.iterdir()):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def make_private(path: Path) -> None:
    """A directory that only we can enter; refuses one of somebody else's or a symbolic link."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise BackendUnavailable(f"{path} is not a directory of ours", hint="remove it or choose another one")
    if found.st_mode & 0o077:
        path.chmod(0o700)


def socket_directory(root: Path) -> Path:
    """Short, and the same for the same root, so that a restarted owner finds the sockets of its past self."""
    base = Path("/run/vm0") if os.geteuid() == 0 else Path(f"/tmp/vm0-{os.geteuid()}")
    return base / _short_hash(root)


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise BackendUnavailable(
            f"{path.parent} is in use by process {holder}", hint="use another state directory, or stop that process"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
