"""The process of a VMM: started inside a network namespace as a user that owns nothing, watched by pidfd, ended surely.

What it needs to open is opened here first and passed by descriptor, so that it needs no rights on any path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vm0.microvm import threads
from vm0.microvm.finishing import in_thread
from vm0.microvm.log_ring import LogReader, LogRing
from vm0.microvm.syscalls import prctl
from vm0.sandbox import SandboxError

KILL_S = 10.0  # SIGKILL to gone; a process in the kernel's hands (an exiting VM frees its memory) takes its time
PR_SET_THP_DISABLE = 41  # linux/prctl.h; children inherit it, and programs keep it
_SMALL_PAGES = threading.Lock()


class ProcessError(SandboxError):
    """a VMM's process cannot be started, or not be ended"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start. `descriptors` keep their numbers in the child; uid None: as ourselves."""

    argv: tuple[str, ...]
    network: Path | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()  # besides `gid`
    descriptors: tuple[int, ...] = ()
    small_pages: bool = False  # no transparent huge pages: what is not used is not taken


class VmmProcess:
    """One process; it belongs to whoever called `spawn`, who must `kill` it."""

    def __init__(self, process: subprocess.Popen[bytes], output: LogReader) -> None:
        self._process, self._output = process, output
        self._pidfd = os.pidfd_open(process.pid)
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @classmethod
    async def spawn(cls, launch: Launch) -> VmmProcess:
        """Start it. Raises ProcessError; then nothing runs. Not interrupted by cancellation: the process that was
        started meanwhile is killed."""
        output = LogReader(LogRing(16 * 1024))
        try:
            process = await in_thread(lambda: _started(launch, output), "spawn", discard=_reap)
        except OSError as exc:
            output.close()
            missing = isinstance(exc, FileNotFoundError) and exc.filename in (launch.argv[0], *unprivileged(launch)[:1])
            hint = "install it, or let `vm0 setup` do it" if missing else ""
            raise ProcessError(f"{launch.argv[0]} cannot be started: {exc}", hint=hint) from exc
        except BaseException:
            output.close()
            raise
        output.started()
        return cls(process, output)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """The last lines it printed itself."""
        return self._output.ring.tail()

    def end_text(self) -> str:
        """How it ended, or that it runs."""
        if not self.exited.done():
            return f"pid {self.pid} runs"
        code = self.exited.result()
        if code >= 0:
            return f"exited with {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return await asyncio.shield(self.exited)

    async def join(self, cgroup: Path) -> None:
        """Move it, and what it will start, into the group. The kernel takes 10 ms for it, in which the process starts
        up: so it is done beside that, and must be awaited before a guest runs. Raises ProcessError."""
        try:
            await asyncio.to_thread((cgroup / "cgroup.procs").write_text, str(self.pid))
        except OSError as exc:
            raise ProcessError(f"pid {self.pid} cannot be put into its cgroup: {exc}") from exc

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Idempotent. Raises ProcessError when it is not gone after 10 s."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_S):
                await self.wait()
        except TimeoutError:
            raise ProcessError(f"pid {self.pid} survived SIGKILL for {KILL_S:g} s") from None
        finally:
            self._output.close()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set_result(self._process.wait())


def _started(launch: Launch, output: LogReader) -> subprocess.Popen[bytes]:
    """In a thread of its own: a child starts in the namespace of the thread that forks it."""
    if launch.network is None:
        return _popen(launch, output)
    return threads.call_inside(launch.network, lambda: _popen(launch, output))


def _popen(launch: Launch, output: LogReader) -> subprocess.Popen[bytes]:
    theirs = output.theirs
    assert theirs is not None
    with small_pages() if launch.small_pages else contextlib.nullcontext():
        return subprocess.Popen(
            (*unprivileged(launch), *launch.argv),
            stdin=subprocess.DEVNULL,
            stdout=theirs.fileno(),
            stderr=theirs.fileno(),
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            pass_fds=launch.descriptors,
            start_new_session=True,
        )


def unprivileged(launch: Launch) -> tuple[str, ...]:
    """The program in front that becomes the user and can never be more. Not Popen's own `user`: with that it copies our
    page tables (10 ms in a runner) instead of borrowing them."""
    if launch.uid is None:
        return ()
    gid = launch.uid if launch.gid is None else launch.gid
    groups = f"--groups={','.join(map(str, launch.groups))}" if launch.groups else "--clear-groups"
    return (
        *("setpriv", f"--reuid={launch.uid}", f"--regid={gid}", groups),
        *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"),
    )


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """What is started meanwhile gets no huge pages; we ourselves neither, for that moment. An emulator asks for them
    for all of its translation buffer, which takes tens of megabytes that an idle machine never uses."""
    with _SMALL_PAGES:
        prctl(PR_SET_THP_DISABLE, 1)
        try:
            yield
        finally:
            prctl(PR_SET_THP_DISABLE, 0)


async def _reap(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    await asyncio.to_thread(process.wait)
