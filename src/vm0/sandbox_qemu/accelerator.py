"""Whether KVM works here. The device node does not tell: under some hypervisors it opens, makes VMs and boots nothing.

So a probe guest is booted with it: the image's kernel with an initramfs that says one line and powers off.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vm0.microvm.log_ring import LogReader, LogRing
from vm0.microvm.process import Launch, VmmProcess
from vm0.sandbox import SandboxError
from vm0.sandbox_qemu.argv import Accelerator
from vm0.sandbox_qemu.machines import Machine
from vm0.sandbox_qemu.vm import BootFiles

PROBE_S = 2.0
PROBE_LINE = "vm0-probe-ok"
PROBE_MEMORY_MIB = 128
KVM = Path("/dev/kvm")
HOST_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Finding:
    """Which accelerator to use, and why, in words for people."""

    accelerator: Accelerator
    why: str
    groups: tuple[int, ...] = ()  # that a VMM needs for it


def device_gid(device: Path) -> int | None:
    """The group through which an unprivileged VMM may open it; None if everybody may. Raises PermissionError."""
    found = device.stat()
    if stat.S_IMODE(found.st_mode) & 0o006 == 0o006:
        return None
    if stat.S_IMODE(found.st_mode) & 0o060 == 0o060 and found.st_gid != 0:
        return found.st_gid
    with contextlib.suppress(KeyError):
        name = grp.getgrgid(found.st_gid).gr_name
        raise PermissionError(f"no permission: {device} is {stat.filemode(found.st_mode)} of group {name}")
    raise PermissionError(f"no permission: {device} is {stat.filemode(found.st_mode)}")


async def find_accelerator(
    machine: Machine, files: BootFiles, *, uid: int | None, cache: Path, qemu_version: str
) -> Finding:
    """KVM if a probe guest boots with it within 2 s as that user, else TCG with the cause. The answer is kept until the
    host boots anew, or its device or QEMU change."""
    if os.uname().machine != machine.architecture:
        return Finding(Accelerator.TCG, f"emulates {machine.architecture} on {os.uname().machine}")
    try:
        gid = device_gid(KVM) if uid is not None else None
        asked = {**_question(machine), "qemu": qemu_version}
    except FileNotFoundError:
        return Finding(Accelerator.TCG, f"no {KVM}: hardware virtualisation is off, or not passed on to this machine")
    except PermissionError as exc:
        return Finding(Accelerator.TCG, str(exc))
    groups = () if gid is None else (gid,)
    if (kept := _kept(cache, asked, groups)) is not None:
        return kept
    failure = await probe(machine, files, uid=uid, groups=groups)
    if failure:
        found = Finding(Accelerator.TCG, f"{failure} ({_nature()})")
    else:
        found = Finding(Accelerator.KVM, "a probe guest booted with KVM", groups)
    _keep(cache, asked, found)
    return found


async def probe(
    machine: Machine,
    files: BootFiles,
    *,
    uid: int | None,
    groups: tuple[int, ...] = (),
    accelerator: Accelerator = Accelerator.KVM,
    limit_s: float = PROBE_S,
) -> str:
    """Boot the probe guest; "" if it said its line in time, else why not."""
    console = LogReader(LogRing())
    assert console.theirs is not None
    with contextlib.ExitStack() as stack:
        stack.callback(console.close)
        kernel, initramfs = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (files.kernel, files.initramfs))
        for fd in (kernel, initramfs):
            stack.callback(os.close, fd)
        cpu = machine.host_cpu if accelerator is Accelerator.KVM else machine.emulated_cpu
        argv = (
            machine.binary, "-machine", machine.machine, "-accel", accelerator.value, "-cpu", cpu,
            "-m", f"{PROBE_MEMORY_MIB}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{initramfs}",
            "-append", f"console={machine.console} quiet panic=-1 {' '.join(machine.boot_parameters)} vm0.probe=1",
            "-chardev", f"socket,id=console,fd={console.theirs.fileno()}", "-serial", "chardev:console",
        )  # fmt: skip
        descriptors = (kernel, initramfs, console.theirs.fileno())
        try:
            process = await VmmProcess.spawn(
                Launch(argv=argv, uid=uid, gid=uid, groups=groups, descriptors=descriptors)
            )
        except SandboxError as exc:
            return str(exc)
        console.started()
        try:
            async with asyncio.timeout(limit_s):
                await process.wait()
            said = process.output.splitlines()
            ended = f"the probe guest did not come up: QEMU {process.end_text()}"
            why = f"{ended}: {said[-1]}" if said else ended
        except TimeoutError:
            why = f"the probe guest did not come up within {limit_s:g} s"
        finally:
            await process.kill()
            console.close()
    return "" if PROBE_LINE in console.ring.tail() else why


def _question(machine: Machine) -> dict[str, str]:
    """What the answer depends on."""
    found = KVM.stat()
    return {
        "boot_id": HOST_BOOT_ID.read_text().strip(),
        "device": f"{found.st_mode:o} {found.st_uid} {found.st_gid}",
        "binary": machine.binary,
    }


def chosen(name: str) -> Finding:
    """By the user, so it is not asked whether it works. Raises PermissionError and FileNotFoundError for a KVM that VMs
    may not open."""
    accelerator = Accelerator(name)
    gid = device_gid(KVM) if accelerator is Accelerator.KVM else None
    return Finding(accelerator, "chosen by name", () if gid is None else (gid,))


def _kept(cache: Path, asked: dict[str, str], groups: tuple[int, ...]) -> Finding | None:
    try:
        kept = json.loads(cache.read_text())
        if kept["asked"] == asked:
            return Finding(Accelerator(kept["accelerator"]), str(kept["why"]), groups)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(cache: Path, asked: dict[str, str], found: Finding) -> None:
    with contextlib.suppress(OSError):  # then it is asked again
        cache.write_text(json.dumps({"asked": asked, "accelerator": found.accelerator.value, "why": found.why}))


def _nature() -> str:
    """What kind of machine has a KVM that boots nothing."""
    cpu = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    flags = next((line for line in cpu.splitlines() if line.startswith("flags")), "").split()
    if "hypervisor" not in flags:
        return "this is no virtual machine: look at the kernel's log for kvm"
    if {"vmx", "svm"} & set(flags):
        return "a virtual machine whose nested virtualisation does not work"
    return "software virtualisation, or a virtual machine without nested virtualisation"
