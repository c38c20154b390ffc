"""Taps through /dev/net/tun, in the network namespace of the calling thread."""

from __future__ import annotations

import fcntl
import os
import struct

TUN_DEVICE = "/dev/net/tun"
# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000


def open_tap(name: str) -> int:
    """Attach to the tap, making it if it is not there; the caller closes the descriptor (close-on-exec).

    Frames carry a virtio_net_hdr. Offloads and the size of that header are left as they are in a new tap (none, 10
    bytes): the VMM sets both when it knows what its guest can do. A tap has one queue: EBUSY while it is open.
    """
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_owner(fd: int, uid: int) -> None:
    """That user may attach without privilege from now on."""
    fcntl.ioctl(fd, TUNSETOWNER, uid)


def make_persistent(fd: int) -> None:
    """The tap outlives its descriptors; it dies with its namespace."""
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
