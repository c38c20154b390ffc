"""What happens to the guest as a whole: its clock, entropy, names and network after a restore.

Needs root and changes the machine, so only a VM's guest does it; the `process` backend's endpoint refuses.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from vm0.vsock_guest.files import RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.vsock_proto.messages import Restore

# linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07)
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
ZONES = "/usr/share/zoneinfo"
COMMAND_S = 5.0


def restore(request: Restore) -> None:
    """Make a restored guest itself: clock, entropy, zone, names, network, in that order. Raises OSError and
    RequestError; what was done before stays, and a guest of which this failed must not be used."""
    time.clock_settime_ns(time.CLOCK_REALTIME, request.realtime_ns)
    add_entropy(request.entropy)
    if request.timezone:
        set_timezone(request.timezone)
    if request.hostname:
        with open("/proc/sys/kernel/hostname", "w", encoding="ascii") as file:
            file.write(request.hostname)
        _write("/etc/hostname", f"{request.hostname}\n")
    if request.machine_id:
        _write("/etc/machine-id", f"{request.machine_id}\n")
    if request.nameserver:
        _write("/etc/resolv.conf", f"nameserver {request.nameserver}\n")
    if request.address:
        _ip("address", "flush", "dev", "eth0")
        _ip("address", "add", request.address, "dev", "eth0")
    if request.gateway:
        _ip("route", "replace", "default", "via", request.gateway)


def add_entropy(entropy: bytes) -> None:
    """Mix it into the kernel's pool, credited, and reseed at once, so that two clones of one snapshot part here."""
    with open("/dev/urandom", "wb", buffering=0) as pool:
        fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(pool, RNDRESEEDCRNG)


def set_timezone(name: str) -> None:
    """Raises RequestError for a zone that this guest has no data for."""
    zone = os.path.normpath(f"{ZONES}/{name}")
    if not zone.startswith(f"{ZONES}/") or not os.path.isfile(zone):
        raise RequestError("invalid", f"time zone {name!r} is not known here")
    temporary = "/etc/.localtime.vm0"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(zone, temporary)
    os.rename(temporary, "/etc/localtime")
    _write("/etc/timezone", f"{name}\n")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _ip(*arguments: str) -> None:
    import subprocess  # only here: it costs 10 ms of a start-up that is waited for

    done = subprocess.run(["ip", *arguments], capture_output=True, timeout=COMMAND_S, check=False)
    if done.returncode != 0:
        raise RequestError("io", f"ip {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
