"""What happens to the guest as a whole: its clock, entropy, names and network after a restore.

Needs root and changes the machine, so only a VM's guest does it; the `process` backend's endpoint refuses. No other
process is started for it: that alone would take longer than all of this. `/proc/sys/kernel/random/boot_id` stays what
it was in the snapshot, because nothing can set it, and the monotonic clock goes on from there.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from vm0.vsock_guest.files import RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm0.vsock_proto.messages import Restore

# linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07)
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
ZONES = "/usr/share/zoneinfo"
INTERFACE = "eth0"


def restore(request: Restore, become_another: Callable[[bytes], None]) -> None:
    """Make a restored guest itself: clock, entropy, boot id and token (`become_another`), names, zone, network, in that
    order. Raises OSError and RequestError; what was done before stays, and a guest of which this failed must not be
    used."""
    from vm0.guest_common import names, network  # a VM's guest has them since its boot; others never need them

    time.clock_settime_ns(time.CLOCK_REALTIME, request.realtime_ns)
    add_entropy(request.entropy)
    become_another(request.token)
    if request.hostname:
        names.set_hostname(request.hostname)
    if request.hostname or request.gateway:
        names.set_hosts(request.hostname, request.gateway)
    if request.machine_id:
        names.set_machine_id(request.machine_id)
    if request.timezone:
        set_timezone(request.timezone)
    if request.nameserver:
        names.set_nameserver(request.nameserver)
    if request.address:
        address, prefix = network_of(request.address)
        network.set_address(INTERFACE, address, prefix)
        network.bring_up(INTERFACE)
    if request.gateway:
        network.set_default_route(request.gateway)


def network_of(text: str) -> tuple[str, int]:
    """ADDRESS/PREFIX. Raises RequestError."""
    address, _, prefix = text.partition("/")
    if not (prefix.isascii() and prefix.isdigit() and 1 <= int(prefix) <= 32):
        raise RequestError("invalid", f"{text!r} is not ADDRESS/PREFIX")
    return address, int(prefix)


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
    _point("/etc/localtime", zone)
    with open("/etc/timezone", "w", encoding="utf-8") as file:
        file.write(f"{name}\n")


def _point(path: str, target: str) -> None:
    temporary = f"{path}.vm0"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, path)
