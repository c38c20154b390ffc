"""Makes process sandboxes below one root directory and removes what a crashed owner left there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from vm0.guest_bundle import GuestBundle, build_bundle
from vm0.sandbox import IsolationTier, Sandbox, SandboxConfig, SandboxError
from vm0.sandbox_common import cgroups
from vm0.sandbox_common.ownership import locked, make_private, short_hash, socket_directory
from vm0.sandbox_common.recorded_process import end_recorded
from vm0.sandbox_process.sandbox import PID_FILE, ProcessSandbox

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
        self._lock = locked(self._root / "lock")
        try:
            make_private(self._sockets)
            parent = cgroups.writable_parent()
            self._cgroup = parent / f"vm0-{short_hash(self._root)}" if parent else None
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
            await end_recorded(leftover / PID_FILE)  # it takes its commands with it
        if self._cgroup is not None:
            await cgroups.remove(self._cgroup)
        for path in (*folder.iterdir(), *self._sockets.iterdir()):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
