"""What differs between architectures on the QEMU side, as one table."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from vm0.sandbox import BackendUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`machine` is QEMU's board. Not `microvm`: without HPET and PM timer its kernels hang in one boot of five under
    emulation, because they cannot calibrate the TSC."""

    architecture: str  # as the kernel and image say it
    binary: str
    package: str  # Debian's
    machine: str
    console: str
    host_cpu: str = "host"  # with hardware virtualisation
    emulated_cpu: str = "max"
    boot_parameters: tuple[str, ...] = ()


MACHINES = {
    "x86_64": Machine(
        architecture="x86_64",
        binary="qemu-system-x86_64",
        package="qemu-system-x86",
        machine="pc",
        console="ttyS0",
        boot_parameters=("reboot=t",),
    ),
    "aarch64": Machine(
        architecture="aarch64",
        binary="qemu-system-aarch64",
        package="qemu-system-arm",
        machine="virt",
        console="ttyAMA0",
    ),
}


def machine_for(architecture: str = "") -> Machine:
    """The table's row, by default of this host. Raises BackendUnavailable for one that is not in the table."""
    name = architecture or platform.machine()
    if name not in MACHINES:
        raise BackendUnavailable(f"architecture {name} is not supported", hint=f"known: {', '.join(MACHINES)}")
    return MACHINES[name]
