"""Namespaces with names: bind mounts in a directory, as `ip netns` has them, made without a process or a fork."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from vm0.microvm.syscalls import CLONE_NEWNET, MNT_DETACH, MS_BIND, MS_REC, MS_SHARED, mount, umount, unshare

NETNS_DIR = Path("/run/netns")
OWN_NAMESPACE = "/proc/thread-self/ns/net"


def prepare(directory: Path) -> bool:
    """Make the directory a shared mount, as iproute2 does, so that a name removed here is removed in every mount
    namespace that copied it: else a service started meanwhile would keep the namespace alive.

    Idempotent. Says whether the mount is new.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    try:
        mount("none", str(directory), MS_SHARED | MS_REC)
        return False
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
    mount(str(directory), str(directory), MS_BIND | MS_REC)
    mount("none", str(directory), MS_SHARED | MS_REC)
    return True


def withdraw(directory: Path) -> None:
    """Undo `prepare`, unless somebody has namespaces there; whoever wants some later prepares it again."""
    with contextlib.suppress(OSError):
        umount(str(directory), 0)


def reserve(path: Path) -> None:
    """Raises FileExistsError if the name is taken."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o000))


def enter_new(path: Path) -> None:
    """Move the calling thread to a new namespace and give that the reserved name."""
    unshare(CLONE_NEWNET)
    mount(OWN_NAMESPACE, str(path), MS_BIND)


def remove(path: Path) -> None:
    """Idempotent. The namespace itself goes when the last process and descriptor in it do."""
    while True:
        try:
            umount(str(path), MNT_DETACH)  # once for each mount on the name, should there be several
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # not a mount point (any more)
                break
            raise
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
