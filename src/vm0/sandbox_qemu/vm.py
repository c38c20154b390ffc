"""One QEMU with all its ends: monitor, console, link to the guest. Boots a guest, or brings one back from a snapshot.

Nothing here knows what the VM is for: a sandbox, the golden VM of a snapshot, or the VM that a fork passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vm0.microvm.log_ring import LogReader, LogRing
from vm0.microvm.process import Launch, VmmProcess
from vm0.microvm.startup import Startup
from vm0.sandbox import SandboxError, StartError
from vm0.sandbox_common.recorded_process import record_process
from vm0.sandbox_qemu.argv import Accelerator, Descriptors, MemoryUse, Shape, plan_argv
from vm0.sandbox_qemu.monitor import Monitor
from vm0.vsock_host import GuestClient, Link, shake_hands

T = TypeVar("T")

SPAWN_S = 15.0
MONITOR_S = 15.0
BOOT_S = 120.0  # 5 s on an idle machine without hardware virtualisation, many times that on a busy one
LOAD_S = 60.0
EXIT_NOTE_S = 2.0  # for the end of the process to be seen once its link is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """What every VM of an image opens, read-only."""

    kernel: Path
    initramfs: Path
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPlan:
    """What to start, on resources that the caller owns. `memory` is a descriptor, the tap is opened by the caller."""

    name: str
    shape: Shape
    files: BootFiles
    kernel_parameters: str
    memory: int
    memory_use: MemoryUse
    disk: Path
    tap: int | None = None
    network: Path | None = None
    uid: int | None = None
    groups: tuple[int, ...] = ()
    cgroup: Path | None = None
    pid_file: Path | None = None
    state: int | None = None  # of a snapshot, at its start; else the VM boots


class Vm:
    """Made by `launch`; ends with `end`."""

    def __init__(self, process: VmmProcess, monitor: Monitor, console: LogReader, link: socket.socket) -> None:
        self.process, self.monitor = process, monitor
        self._console = console
        self._link_socket: socket.socket | None = link

    @property
    def log_tail(self) -> str:
        """What the guest's console and QEMU said last."""
        parts = [self._console.ring.tail(), self.process.output]
        return "\n".join(part for part in parts if part)

    async def booted(self, startup: Startup, *, token: bytes, build: str) -> GuestClient:
        """The guest, when it has come up and shaken hands; raises StartError at once when it died instead."""
        link = self._take_link(resumed=False)
        startup.owns("link", link.close)
        return await startup.step(
            "boot", self._or_death("boot", shake_hands(link, token=token, build=build)), limit_s=BOOT_S
        )

    async def loaded(self, startup: Startup, state: int) -> GuestClient:
        """The guest of a snapshot, running; it refuses work until `resume`."""
        await startup.step("load", self._or_death("load", self.monitor.load_state(state)), limit_s=LOAD_S)
        await startup.step("continue", self._or_death("continue", self.monitor.cont()), limit_s=LOAD_S)
        link = self._take_link(resumed=True)
        startup.owns("link", link.close)
        return GuestClient(link)

    async def death_note(self) -> str:
        """How QEMU ended, with what was said last; waits a moment for the end to be seen."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_NOTE_S):
                await self.process.wait()
        tail = self.log_tail
        return f"QEMU {self.process.end_text()}" + (f"; its last words:\n{tail}" if tail else "")

    async def end(self) -> None:
        """By force, at once. Idempotent."""
        try:
            await self.process.kill()
        finally:
            await self.monitor.close()
            self._console.close()
            if self._link_socket is not None:
                self._link_socket.close()
                self._link_socket = None

    def _take_link(self, *, resumed: bool) -> Link:
        sock, self._link_socket = self._link_socket, None
        assert sock is not None, "the link was taken before"
        return Link(sock, resumed=resumed)

    async def _or_death(self, step: str, work: Awaitable[T]) -> T:
        """`work`, or StartError with QEMU's last words as soon as the process ends."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait((working, self.process.exited), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise StartError(step, await self.death_note())
            try:
                return working.result()
            except (SandboxError, OSError) as exc:  # a QEMU that dies closes its ends before it is gone
                if isinstance(exc, StartError):
                    raise
                raise StartError(step, f"{exc}; {await self.death_note()}", hint=getattr(exc, "hint", "")) from exc
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def launch(startup: Startup, plan: VmPlan) -> Vm:
    """Start QEMU; `startup` owns it. Raises StartError; what was started is undone by the caller's `startup.undo`."""
    console = LogReader(LogRing())
    startup.owns("console", console.close)
    link, link_end = socket.socketpair()
    control, control_end = socket.socketpair()
    startup.owns("link socket", link.close)
    startup.owns("monitor socket", control.close)
    with contextlib.ExitStack() as stack:
        for sock in (link_end, control_end):
            stack.callback(sock.close)
        with startup.timed("open"):
            fds = _opened(stack, plan, link=link_end.fileno(), monitor=control_end.fileno(), console=console)
        argv = plan_argv(plan.shape, fds, plan.kernel_parameters, plan.memory_use, incoming=plan.state is not None)
        given = tuple(fd for fd in (*_numbers(fds), plan.state) if fd is not None)
        launch = Launch(
            argv=argv,
            network=plan.network,
            uid=plan.uid,
            gid=plan.uid,
            groups=plan.groups,
            descriptors=given,
            small_pages=plan.shape.accelerator is Accelerator.TCG,
        )
        process = await startup.step("spawn", VmmProcess.spawn(launch), limit_s=SPAWN_S)
    startup.owns("process", process.kill)
    monitor = Monitor(control)
    vm = Vm(process, monitor, console, link)
    startup.owns("vm", vm.end)
    console.started()
    if plan.pid_file is not None:
        record_process(plan.pid_file, process.pid)
    joining = asyncio.ensure_future(_joined(process, plan.cgroup))
    try:
        await startup.step("monitor", vm._or_death("monitor", monitor.connect()), limit_s=MONITOR_S)
        await startup.step("cgroup", vm._or_death("cgroup", joining), limit_s=MONITOR_S)
    finally:
        await asyncio.gather(joining, return_exceptions=True)  # while its pid is certainly its own
    return vm


async def _joined(process: VmmProcess, cgroup: Path | None) -> None:
    if cgroup is not None:
        await process.join(cgroup)


def _opened(stack: contextlib.ExitStack, plan: VmPlan, *, link: int, monitor: int, console: LogReader) -> Descriptors:
    def opened(path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return fd

    assert console.theirs is not None
    return Descriptors(
        kernel=opened(plan.files.kernel, os.O_RDONLY),
        initramfs=opened(plan.files.initramfs, os.O_RDONLY),
        root=opened(plan.files.root, os.O_RDONLY),
        disk=opened(plan.disk, os.O_RDWR),
        memory=plan.memory,
        link=link,
        console=console.theirs.fileno(),
        monitor=monitor,
        tap=plan.tap,
    )


def _numbers(fds: Descriptors) -> tuple[int | None, ...]:
    return (
        fds.kernel, fds.initramfs, fds.root, fds.disk, fds.memory, fds.link, fds.console, fds.monitor, fds.tap
    )  # fmt: skip
