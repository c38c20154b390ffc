"""QEMU's command line as a pure function. Everything QEMU opens is a descriptor that it inherits.

A snapshot is restored by the same command line that its VM was started with, but for how the memory is mapped and
`-incoming`: both ends of a migration must have the same machine.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass

from vm0.microvm import guest
from vm0.sandbox_qemu.machines import Machine


class Accelerator(enum.Enum):
    KVM = "kvm"
    TCG = "tcg"


class MemoryUse(enum.Enum):
    """Shared: what the guest writes can become a snapshot. Private: a copy on write of what is there."""

    SHARED = "on"
    PRIVATE = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What must be equal between a snapshot and what is restored from it."""

    machine: Machine
    accelerator: Accelerator
    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Numbers of open descriptors in the child. `tap` None: no network."""

    kernel: int
    initramfs: int
    root: int
    disk: int
    memory: int
    link: int
    console: int
    monitor: int
    tap: int | None = None


# Room for what is translated of a large program (an agent's CLI fills 100 MiB); when it is full, all is thrown away and
# translated again. Only what is used takes memory, if QEMU gets no huge pages for it.
TCG_BUFFER_MIB = 256
# Our descriptors, the log and nothing else: no way to start programs, change ids or get more resources.
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def plan_argv(
    shape: Shape, fds: Descriptors, kernel_parameters: str, memory: MemoryUse, *, incoming: bool
) -> tuple[str, ...]:
    """`incoming`: the VM waits for its state and is then started by the monitor's word."""
    machine = shape.machine
    kvm = shape.accelerator is Accelerator.KVM
    return (
        machine.binary,
        *("-name", "vm0,process=vm0-vm"),
        *("-machine", f"{machine.machine},memory-backend=ram,dump-guest-core=off"),
        *("-accel", "kvm" if kvm else f"tcg,tb-size={TCG_BUFFER_MIB}"),
        *("-cpu", machine.host_cpu if kvm else machine.emulated_cpu),
        *("-smp", _processors(shape)),
        *("-m", f"{shape.memory_mib}M"),
        "-object",
        f"memory-backend-file,id=ram,size={shape.memory_mib}M,mem-path=/proc/self/fd/{fds.memory},share={memory.value}",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        *("-sandbox", SECCOMP),
        *("-kernel", f"/proc/self/fd/{fds.kernel}"),
        *("-initrd", f"/proc/self/fd/{fds.initramfs}"),
        *("-append", kernel_parameters),
        *_drive("root", fds.root, 1, read_only=True),
        *_drive("disk", fds.disk, 2, read_only=False),
        *_socket("monitor", fds.monitor),
        *("-mon", "chardev=monitor,mode=control"),
        *_socket("console", fds.console),
        *("-serial", "chardev:console"),
        *_socket("link", fds.link),
        *("-device", "virtio-serial-pci,max_ports=2"),
        *("-device", f"virtserialport,chardev=link,name={guest.SERIAL_PORT}"),
        *("-device", "virtio-rng-pci"),
        *("-device", "virtio-balloon-pci,id=balloon,deflate-on-oom=on"),
        *_network(fds.tap),
        *(("-incoming", "defer") if incoming else ()),
    )  # fmt: skip


def _processors(shape: Shape) -> str:
    """An emulated machine can always have a second processor, so that QEMU keeps the memory barriers of the first.

    For a machine that can have one alone it translates them to nothing and locked instructions to plain ones. But the
    devices run in another thread: without barriers a guest and its device can each miss what the other just wrote, and
    wait for each other for ever (seen with the serial port, once in some hundred restores).
    """
    if shape.accelerator is Accelerator.TCG and shape.vcpus == 1:
        return "1,maxcpus=2"
    return str(shape.vcpus)


def _drive(name: str, fd: int, number: int, *, read_only: bool) -> tuple[str, ...]:
    """The writable disk dies with its VM, so nobody waits for it to be synced (`no-flush`)."""
    common = f"driver=file,node-name={name},filename=/dev/fdset/{number},locking=off"
    mode = "read-only=on" if read_only else "cache.no-flush=on,discard=unmap"
    return (
        *("-add-fd", f"fd={fd},set={number}"),
        *("-blockdev", f"{common},{mode}"),
        *("-device", f"virtio-blk-pci,drive={name}"),
    )


def _socket(name: str, fd: int) -> tuple[str, ...]:
    return ("-chardev", f"socket,id={name},fd={fd}")


def _network(tap: int | None) -> tuple[str, ...]:
    """No announcement after a restore: nobody but us is on the link, and we know who came."""
    if tap is None:
        return ()
    return (
        *("-netdev", f"tap,id=net,fd={tap}"),
        *("-device", f"virtio-net-pci,netdev=net,mac={guest.GUEST_MAC},romfile=,guest_announce=off"),
    )


def machine_digest(shape: Shape) -> str:
    """Changes with every argument that makes the machine, so that no snapshot is restored into another one."""
    fds = Descriptors(kernel=0, initramfs=0, root=0, disk=0, memory=0, link=0, console=0, monitor=0, tap=0)
    argv = plan_argv(shape, fds, "", MemoryUse.PRIVATE, incoming=False)
    return hashlib.sha256("\0".join(argv).encode()).hexdigest()[:16]
