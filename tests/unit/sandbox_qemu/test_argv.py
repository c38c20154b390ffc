"""QEMU's command line, as text: whatever changes here changes every snapshot, so a change must be meant."""

from __future__ import annotations

import dataclasses

import pytest

from vm0.sandbox import BackendUnavailable
from vm0.sandbox_qemu.argv import Accelerator, Descriptors, MemoryUse, Shape, machine_digest, plan_argv
from vm0.sandbox_qemu.host import new_kernel_parameters
from vm0.sandbox_qemu.machines import MACHINES, machine_for

SHAPE = Shape(machine=MACHINES["x86_64"], accelerator=Accelerator.TCG, vcpus=1, memory_mib=256)
FDS = Descriptors(kernel=3, initramfs=4, root=5, disk=6, memory=7, link=8, console=9, monitor=10, tap=11)

EMULATED = """\
qemu-system-x86_64
-name vm0,process=vm0-vm
-machine pc,memory-backend=ram,dump-guest-core=off
-accel tcg,tb-size=256
-cpu max
-smp 1,maxcpus=2
-m 256M
-object memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/7,share=off
-nodefaults
-no-user-config
-no-reboot
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-kernel /proc/self/fd/3
-initrd /proc/self/fd/4
-append PARAMETERS
-add-fd fd=5,set=1
-blockdev driver=file,node-name=root,filename=/dev/fdset/1,locking=off,read-only=on
-device virtio-blk-pci,drive=root
-add-fd fd=6,set=2
-blockdev driver=file,node-name=disk,filename=/dev/fdset/2,locking=off,cache.no-flush=on,discard=unmap
-device virtio-blk-pci,drive=disk
-chardev socket,id=monitor,fd=10
-mon chardev=monitor,mode=control
-chardev socket,id=console,fd=9
-serial chardev:console
-chardev socket,id=link,fd=8
-device virtio-serial-pci,max_ports=2
-device virtserialport,chardev=link,name=vm0
-device virtio-rng-pci
-device virtio-balloon-pci,id=balloon,deflate-on-oom=on
-netdev tap,id=net,fd=11
-device virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,romfile=,guest_announce=off"""


def lines(shape: Shape = SHAPE, **options: object) -> list[str]:
    """An option with its value on a line."""
    fds = options.pop("fds", FDS)
    memory = options.pop("memory", MemoryUse.PRIVATE)
    incoming = bool(options.pop("incoming", False))
    words = plan_argv(shape, fds, "PARAMETERS", memory, incoming=incoming)  # type: ignore[arg-type]  # the test's
    return "\n".join(words).replace("\n-", "\0-").replace("\n", " ").replace("\0", "\n").splitlines()


def test_an_emulated_machine() -> None:
    assert lines() == EMULATED.splitlines()


def difference(**options: object) -> list[str]:
    return [line for line in lines(**options) if line not in EMULATED.splitlines()]  # type: ignore[arg-type]


def test_what_makes_a_difference() -> None:
    kvm = dataclasses.replace(SHAPE, accelerator=Accelerator.KVM)
    assert difference(shape=kvm) == ["-accel kvm", "-cpu host", "-smp 1"]
    assert difference(incoming=True) == ["-incoming defer"]
    assert [line[-8:] for line in difference(memory=MemoryUse.SHARED)] == ["share=on"]
    larger = dataclasses.replace(SHAPE, vcpus=2, memory_mib=1024)
    assert [line.split(",")[0] for line in difference(shape=larger)] == [
        "-smp 2", "-m 1024M", "-object memory-backend-file",
    ]  # fmt: skip
    assert not any(
        "net" in line for line in lines(fds=dataclasses.replace(FDS, tap=None)) if line.startswith("-netdev")
    )


def test_no_path_but_of_descriptors() -> None:
    """QEMU runs as a user that owns nothing."""
    named = [word for line in lines() for word in line.replace("=", " ").replace(",", " ").split() if word[0] == "/"]
    assert all(word.startswith(("/proc/self/fd/", "/dev/fdset/")) for word in named)


def test_the_machines_digest() -> None:
    assert machine_digest(SHAPE) == machine_digest(dataclasses.replace(SHAPE))
    others = [
        dataclasses.replace(SHAPE, vcpus=2),
        dataclasses.replace(SHAPE, memory_mib=257),
        dataclasses.replace(SHAPE, accelerator=Accelerator.KVM),
        dataclasses.replace(SHAPE, machine=MACHINES["aarch64"]),
    ]
    assert len({machine_digest(shape) for shape in (SHAPE, *others)}) == 5


def test_the_kernels_command_line() -> None:
    text = new_kernel_parameters(SHAPE, b"\x01\xff")
    assert text == (
        "console=ttyS0 quiet loglevel=3 panic=-1 audit=0 random.trust_cpu=on net.ifnames=0 ipv6.disable=1 reboot=t "
        "mitigations=off root=/dev/vda rootfstype=squashfs ro init=/usr/lib/vm0/init vm0.link=serial:vm0 "
        "vm0.token=01ff vm0.ip=192.168.241.2/29 vm0.gw=192.168.241.1 vm0.dns=192.168.241.1 vm0.hostname=vm0 "
        "vm0.overlay=/dev/vdb"
    )
    kvm = dataclasses.replace(SHAPE, accelerator=Accelerator.KVM)
    assert "mitigations" not in new_kernel_parameters(kvm, b"")
    arm = dataclasses.replace(SHAPE, machine=MACHINES["aarch64"])
    assert new_kernel_parameters(arm, b"").startswith("console=ttyAMA0 ")


def test_a_machine_for_every_architecture_of_an_image() -> None:
    from vm0.image.architectures import ARCHITECTURES

    assert set(ARCHITECTURES) == set(MACHINES)
    with pytest.raises(BackendUnavailable, match="riscv64"):
        machine_for("riscv64")
