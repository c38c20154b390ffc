"""One process sandbox: a folder, a guest endpoint started from the bundle, and a cgroup where the host has them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from vm0.guest_bundle import GuestBundle
from vm0.sandbox import IsolationTier, SandboxConfig, StartError, UnixSocket
from vm0.sandbox_common import GuestSandbox, cgroups
from vm0.sandbox_common.recorded_process import record_process
from vm0.vsock_host import GuestClient, GuestListener, UnixAddress

START_S = 15.0  # spawn to finished handshake; a busy machine takes 1 s
GIVE_UP_S = 3.0  # the guest endpoint exits by itself this long after its host vanished
TERMINATE_S = 5.0
LOG_TAIL_BYTES = 4096
PID_FILE = "guest.pid"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProcessSandbox(GuestSandbox):
    """`folder/root` stands for the guest's `/`; nothing keeps a command from leaving it."""

    def __init__(
        self, config: SandboxConfig, *, folder: Path, sockets: Path, cgroup: Path | None, bundle: GuestBundle
    ) -> None:
        super().__init__(config, IsolationTier.PROCESS)
        self._folder, self._sockets, self._cgroup, self._bundle = folder, sockets, cgroup, bundle
        self._root = folder / "root"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def api_access(self) -> UnixSocket:
        return UnixSocket(str(self._sockets / "api.sock"))

    def guest_path(self, path: str) -> str:
        return f"{self._root}{path}"

    def program(self, name: str) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", str(self._bundle.path), name)

    def allocate(self) -> None:
        """Make the folders; raises OSError."""
        for directory in (self._folder, self._sockets):
            directory.mkdir(parents=True, mode=0o700)
        for name in ("home/user", "tmp"):
            (self._root / name).mkdir(parents=True)
        if self._cgroup is not None:
            self._cgroup.mkdir()

    async def release(self) -> None:
        """Remove all that `allocate` made; idempotent. The sandbox must have been killed."""
        if self._cgroup is not None:
            await cgroups.remove(self._cgroup)
        for directory in (self._folder, self._sockets):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _launch(self) -> GuestClient:
        token = secrets.token_bytes(32)
        token_file = self._sockets / "token"
        token_file.touch(mode=0o600)
        token_file.write_bytes(token)
        address = UnixAddress(str(self._sockets / "guest.sock"))
        async with GuestListener(address, token=token, build=self._bundle.build) as listener:
            await self._spawn(token_file)
            assert self._process is not None
            accepting = asyncio.create_task(listener.accept(START_S), name=f"accept {self.sandbox_id}")
            exiting = asyncio.create_task(self._process.wait(), name=f"exit {self.sandbox_id}")
            try:
                await asyncio.wait((accepting, exiting), return_when=asyncio.FIRST_COMPLETED)
                if not accepting.done():
                    code = exiting.result()
                    raise StartError("handshake", f"the guest endpoint exited with {code}", log_tail=self._log_tail())
                return accepting.result()
            finally:
                accepting.cancel()
                exiting.cancel()
                await asyncio.gather(accepting, exiting, return_exceptions=True)

    async def _spawn(self, token_file: Path) -> None:
        command = [
            *self.program("vsock-guest"),
            *("--connect", f"unix:{self._sockets / 'guest.sock'}"),
            *("--token-file", str(token_file)),
            *("--build", self._bundle.build),
            *("--give-up-s", str(GIVE_UP_S)),
            *(("--cgroup", str(self._cgroup)) if self._cgroup else ()),
            "--subreaper",
        ]
        with self._open_log() as guest_log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=guest_log,
                stderr=guest_log,
                cwd=self._root,
                env={"PATH": PATH, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        record_process(self._folder / PID_FILE, self._process.pid)
        if self._cgroup is not None:  # before the handshake, so before it can have started anything
            with contextlib.suppress(ProcessLookupError):
                cgroups.add(self._cgroup, self._process.pid)

    async def _terminate(self) -> None:
        """SIGTERM lets the endpoint end its commands, which matters where there is no cgroup; then SIGKILL to all."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL if self._cgroup else signal.SIGTERM)
            try:
                async with asyncio.timeout(TERMINATE_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._cgroup is not None:
            with contextlib.suppress(FileNotFoundError):
                (self._cgroup / "cgroup.kill").write_text("1")

    def _open_log(self) -> BinaryIO:
        return open(self._folder / "guest.log", "ab")

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError), open(self._folder / "guest.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
        return ""
