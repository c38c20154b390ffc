"""Snapshots are made here: of a golden VM that was booted and warmed for it, and of a running sandbox (fork)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vm0.microvm import memory as vm_memory
from vm0.microvm import sparse
from vm0.microvm.finishing import in_thread, to_the_end
from vm0.microvm.guest import BUNDLE_PATH, GUEST_PYTHON
from vm0.microvm.startup import Startup
from vm0.sandbox import ExecRequest, Reason, SandboxError, SandboxOperationError
from vm0.sandbox_qemu import snapshot
from vm0.sandbox_qemu.argv import MemoryUse, Shape
from vm0.sandbox_qemu.host import TOKEN_BYTES, Host, launch_on, new_kernel_parameters, now
from vm0.sandbox_qemu.sandbox import QemuSandbox
from vm0.sandbox_qemu.seat import Seat
from vm0.sandbox_qemu.vm import Vm
from vm0.vsock_host import GuestClient

WARM_S = 300.0  # of one command; the first start of an agent's CLI is slow under emulation
SAVE_S = 180.0
# What every run starts: the interpreter and our guest programs are in the page cache of every clone.
OWN_WARM_UP = tuple(
    f"{GUEST_PYTHON} -I -S {BUNDLE_PATH} {program} </dev/null >/dev/null 2>&1 || :"
    for program in ("guest-agent", "guest-download")
)


async def make_golden(
    host: Host,
    seat: Seat,
    shape: Shape,
    *,
    warm: Sequence[str],
    made_from: Mapping[str, str],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Boot a VM, run the image's warm-up in it, stop it, and write it to `folder`. The seat is the caller's.

    Raises StartError, SnapshotError, SandboxError; then no snapshot is there. Half a minute without hardware
    virtualisation.
    """
    startup = Startup()
    token = secrets.token_bytes(TOKEN_BYTES)
    parameters = new_kernel_parameters(shape, token)
    ram = vm_memory.new_memory(shape.memory_mib)
    startup.owns("memory", lambda: os.close(ram))
    try:
        say("booting the golden VM")
        vm = await launch_on(startup, host, seat, shape, parameters=parameters, memory=ram, memory_use=MemoryUse.SHARED)
        client = await vm.booted(startup, token=token, build=host.build)
        await client.restore(now())
        for command in (*OWN_WARM_UP, *warm):
            say(f"warming up: {command if command in warm else 'the guest programs'}")
            await _warmed(client, command)
        say("writing the snapshot")
        state = await _stopped(vm, client, with_memory=False)
        await to_the_end(vm.end())
        save = functools.partial(
            snapshot.save,
            folder,
            ram=ram,
            state=state,
            disk=seat.disk,
            kernel_parameters=parameters,
            build=host.build,
            made_from=made_from,
        )
        await in_thread(save, "save snapshot")
    finally:
        await startup.undo()


async def snapshot_of(
    host: Host, sandbox: QemuSandbox, passage: Seat, disk: Path, made_from: Mapping[str, str]
) -> snapshot.Snapshot:
    """A running sandbox as a snapshot in memory, with a copy of its disk at `disk`; it runs on.

    Its memory is private to its QEMU, so it travels in the migration stream, once: into a VM that maps its memory
    shared and never runs, from which state and memory are taken apart again. `passage` is that VM's seat.
    """
    vm, startup = sandbox.vm(), Startup()
    stream = snapshot.state_file()
    startup.owns("stream", lambda: os.close(stream))
    try:
        try:
            if await sandbox.quiesce():
                raise SandboxOperationError(
                    "fork", Reason.STATE, "commands run in it: wait for their end, or cancel them"
                )
            await vm.monitor.stop()
            await vm.monitor.save_state(stream, with_memory=True)
            await in_thread(lambda: _copy_over(sandbox.seat.disk, disk), "copy disk")
        except BaseException:
            with contextlib.suppress(SandboxError):  # the first error says why
                await to_the_end(_run_on(sandbox, vm))
            raise
        await to_the_end(_run_on(sandbox, vm))
        frozen = await _passed(startup, host, sandbox, passage, stream, disk, made_from)
    except BaseException:
        await startup.undo()
        raise
    try:
        await startup.undo()
    except BaseException:
        frozen.close()
        raise
    return frozen


async def _run_on(sandbox: QemuSandbox, vm: Vm) -> None:
    """However far it was stopped. One that cannot be made to run on is ended: who uses it must not wait for ever."""
    try:
        await vm.monitor.cont()
        await sandbox.restore_clock()
        await sandbox.resume()
    except SandboxError:
        await vm.process.kill()
        raise


async def _passed(
    startup: Startup,
    host: Host,
    sandbox: QemuSandbox,
    passage: Seat,
    stream: int,
    disk: Path,
    made_from: Mapping[str, str],
) -> snapshot.Snapshot:
    shape = sandbox.shape
    ram = vm_memory.new_memory(shape.memory_mib)
    try:
        incoming = os.open(f"/proc/self/fd/{stream}", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.closing(os.fdopen(incoming, "rb")):
            vm = await launch_on(
                startup,
                host,
                passage,
                shape,
                parameters=sandbox.kernel_parameters,
                memory=ram,
                memory_use=MemoryUse.SHARED,
                state=incoming,
            )
            await startup.step("load", vm.monitor.load_state(incoming, with_memory=True), limit_s=SAVE_S)
        state = await _saved(vm, with_memory=False)
        await to_the_end(vm.end())
        facts = snapshot.facts_of(
            ram=ram,
            state=state,
            disk=disk,
            kernel_parameters=sandbox.kernel_parameters,
            build=host.build,
            made_from=made_from,
        )
        return snapshot.in_memory(ram, state, disk, facts)
    except BaseException:
        os.close(ram)
        raise


async def _warmed(client: GuestClient, command: str) -> None:
    result = await client.exec(
        ExecRequest(argv=(command,), shell=True, timeout_s=WARM_S, merge_stderr=True, stdout_limit=4096)
    )
    if result.shell_code != 0:
        said = result.stdout.data.decode(errors="replace").strip() or result.diagnostic
        raise snapshot.SnapshotError(
            f"warm-up {command!r} {result.ended.value} with {result.shell_code}: {said}",
            hint="correct the `warm` commands of the image's recipe",
        )


async def _stopped(vm: Vm, client: GuestClient, *, with_memory: bool) -> bytes:
    """Stop a VM in which nothing runs, for good, and return its state."""
    running = await client.quiesce()
    if running:
        raise snapshot.SnapshotError(f"{running} commands still run in the golden VM")
    await vm.monitor.stop()
    return await _saved(vm, with_memory=with_memory)


async def _saved(vm: Vm, *, with_memory: bool) -> bytes:
    fd = snapshot.state_file()
    try:
        async with asyncio.timeout(SAVE_S):
            await vm.monitor.save_state(fd, with_memory=with_memory)
        return snapshot.state_of(fd)
    finally:
        os.close(fd)


def _copy_over(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    sparse.clone_file(source, target)
