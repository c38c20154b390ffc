"""What all VMs of one factory share, and the plan of a VM from it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from dataclasses import dataclass

from vm0.microvm.boot import Boot, kernel_parameters
from vm0.microvm.startup import Startup
from vm0.sandbox import IsolationTier, RestoreRequest
from vm0.sandbox_qemu.argv import Accelerator, MemoryUse, Shape
from vm0.sandbox_qemu.seat import Seat
from vm0.sandbox_qemu.vm import BootFiles, Vm, VmPlan, launch

ENTROPY_BYTES = 256
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts that were found when the factory was entered."""

    files: BootFiles
    image_key: str
    build: str
    accelerator: Accelerator
    why_accelerator: str
    groups: tuple[int, ...]  # that QEMU needs for the accelerator
    qemu_version: str
    host_cpu: str

    @property
    def isolation(self) -> IsolationTier:
        return IsolationTier.HARDWARE_VM if self.accelerator is Accelerator.KVM else IsolationTier.EMULATED_VM


def new_kernel_parameters(shape: Shape, token: bytes) -> str:
    """Mitigations inside an emulated guest cost much and protect nothing: the host's are what stands between VMs."""
    extra = shape.machine.boot_parameters
    if shape.accelerator is Accelerator.TCG:
        extra = (*extra, "mitigations=off")
    return kernel_parameters(Boot(console=shape.machine.console, token=token, extra=extra))


async def launch_on(
    startup: Startup,
    host: Host,
    seat: Seat,
    shape: Shape,
    *,
    parameters: str,
    memory: int,
    memory_use: MemoryUse,
    state: int | None = None,
) -> Vm:
    """Start QEMU on a seat; `memory` and `state` stay the caller's descriptors."""
    with contextlib.ExitStack() as stack:
        with startup.timed("tap"):
            tap = seat.namespace.open_tap(seat.uid)
        stack.callback(os.close, tap)
        plan = VmPlan(
            name=seat.name,
            shape=shape,
            files=host.files,
            kernel_parameters=parameters,
            memory=memory,
            memory_use=memory_use,
            disk=seat.disk,
            tap=tap,
            network=seat.namespace.netns_path,
            uid=seat.uid,
            groups=host.groups,
            cgroup=seat.cgroup,
            pid_file=seat.pid_file,
            state=state,
        )
        return await launch(startup, plan)


def new_identity(hostname: str) -> RestoreRequest:
    """What makes a guest itself, drawn anew at every call."""
    return dataclasses.replace(
        now(), token=secrets.token_bytes(TOKEN_BYTES), hostname=hostname, machine_id=secrets.token_hex(16)
    )


def now() -> RestoreRequest:
    """For a guest that stood still and is still itself: the clock, and entropy."""
    return RestoreRequest(realtime_ns=time.time_ns(), entropy=secrets.token_bytes(ENTROPY_BYTES))
