"""One QEMU sandbox: restored from a snapshot, or booted, on a seat of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets

from vm0.microvm import memory as vm_memory
from vm0.microvm.guest import API_URL, BRIDGE_PORT, BUNDLE_PATH, GUEST_PYTHON
from vm0.microvm.startup import Startup
from vm0.sandbox import SandboxConfig, SourceAddress, State, next_state
from vm0.sandbox_common import GuestSandbox
from vm0.sandbox_qemu.argv import MemoryUse, Shape
from vm0.sandbox_qemu.host import TOKEN_BYTES, Host, launch_on, new_identity, new_kernel_parameters, now
from vm0.sandbox_qemu.seat import Seat
from vm0.sandbox_qemu.snapshot import Snapshot
from vm0.sandbox_qemu.vm import Vm
from vm0.vsock_host import GuestClient

IDENTITY_S = 30.0
MIB = 1024 * 1024


class QemuSandbox(GuestSandbox):
    """`origin` is the snapshot it starts from, None boots it. It uses its seat and does not own it."""

    def __init__(self, config: SandboxConfig, *, host: Host, seat: Seat, shape: Shape, origin: Snapshot | None) -> None:
        super().__init__(config, host.isolation)
        self.seat, self.shape = seat, shape
        self._host, self._origin = host, origin
        self._startup = Startup()
        self._vm: Vm | None = None
        self.kernel_parameters = ""

    @property
    def api_access(self) -> SourceAddress:
        namespace = self.seat.namespace
        return SourceAddress(namespace.host_address, BRIDGE_PORT, namespace.source_address, API_URL)

    @property
    def start_seconds(self) -> dict[str, float]:
        """How long each step of the start took."""
        return dict(self._startup.seconds)

    @property
    def vmm_pid(self) -> int:
        """QEMU's process id on the host; raises InvalidStateError when none runs."""
        return self._running_vm("operate").process.pid

    def guest_path(self, path: str) -> str:
        return path

    def program(self, name: str) -> tuple[str, ...]:
        return (GUEST_PYTHON, "-I", "-S", BUNDLE_PATH, name)

    async def pause(self) -> None:
        """Stop the vCPUs; the guest does not notice, its clock stands. Operations wait or time out meanwhile."""
        following = next_state(self._state, "pause")
        await self._running_vm("pause").monitor.stop()
        if self._state is State.RUNNING:
            self._state = following

    async def unpause(self) -> None:
        """Let it run on, with the clock set again."""
        following = next_state(self._state, "unpause")
        vm, client = self._running_vm("unpause"), self._guest("unpause")
        await vm.monitor.cont()
        if self._state is State.PAUSED:
            self._state = following
        await client.restore(now())

    async def restore_clock(self) -> None:
        """After it was stopped behind its back."""
        await self._guest("restore").restore(now())

    async def set_memory(self, memory_mib: int) -> None:
        """Ask the guest, by its balloon, to get along with that much; it gives back what it can, and not at once."""
        next_state(self._state, "operate")
        await self._running_vm("operate").monitor.balloon(memory_mib * MIB)

    def vm(self) -> Vm:
        """The running VM, for a snapshot of it."""
        return self._running_vm("operate")

    async def _launch(self) -> GuestClient:
        if self._origin is None:
            client = await self._boot()
        else:
            client = await self._restore(self._origin)
        startup = self._startup
        await startup.step("identity", client.restore(new_identity(self.sandbox_id)), limit_s=IDENTITY_S)
        if self._origin is not None:
            await startup.step("resume", client.resume(), limit_s=IDENTITY_S)
        return client

    async def _boot(self) -> GuestClient:
        token = secrets.token_bytes(TOKEN_BYTES)
        self.kernel_parameters = new_kernel_parameters(self.shape, token)
        with contextlib.ExitStack() as stack:
            ram = vm_memory.new_memory(self.shape.memory_mib)
            stack.callback(os.close, ram)
            self._vm = await launch_on(
                self._startup,
                self._host,
                self.seat,
                self.shape,
                parameters=self.kernel_parameters,
                memory=ram,
                memory_use=MemoryUse.PRIVATE,
            )
        return await self._vm.booted(self._startup, token=token, build=self._host.build)

    async def _restore(self, origin: Snapshot) -> GuestClient:
        self.kernel_parameters = origin.facts.kernel_parameters
        with contextlib.ExitStack() as stack:
            state = origin.open_state()
            stack.callback(os.close, state)
            self._vm = await launch_on(
                self._startup,
                self._host,
                self.seat,
                self.shape,
                parameters=self.kernel_parameters,
                memory=origin.memory,
                memory_use=MemoryUse.PRIVATE,
                state=state,
            )
        return await self._vm.loaded(self._startup, state)

    async def _terminate(self) -> None:
        await self._startup.undo()

    def _log_tail(self) -> str:
        return self._vm.log_tail if self._vm is not None else ""

    async def _death_note(self, why: str) -> str:
        if self._vm is None:
            return why
        ended = asyncio.create_task(self._vm.death_note(), name=f"death note {self.sandbox_id}")
        return f"{why}; {await ended}"

    def _running_vm(self, action: str) -> Vm:
        if self._vm is None or self._state in (State.CREATED, State.STOPPED):
            next_state(State.STOPPED, action)
        assert self._vm is not None
        return self._vm
