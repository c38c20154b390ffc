"""One wrapper per system call that Python has no function for. All raise OSError with errno and what it was about.

Imports ctypes (1 ms, natively): for PID 1 only.
"""

from __future__ import annotations

import ctypes
import os

# linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_NOATIME = 0x400
MNT_DETACH = 2
# linux/reboot.h
RB_AUTOBOOT, RB_POWER_OFF, RB_DISABLE_CAD = 0x01234567, 0x4321FEDC, 0
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p)
_libc.syscall.restype = ctypes.c_long
_libc.reboot.argtypes = (ctypes.c_int,)


def _error(what: str, path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}", path)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), fstype.encode(), flags, data.encode() or None) != 0:
        raise _error(f"mount {fstype}", target)


def umount(target: str, flags: int = 0) -> None:
    if _libc.umount2(target.encode(), flags) != 0:
        raise _error("umount", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """No function of libc's."""
    if _libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], new_root.encode(), put_old.encode()) != 0:
        raise _error("pivot_root", new_root)


def reboot(command: int) -> None:
    """Ends the machine with RB_AUTOBOOT and RB_POWER_OFF, without a sync; returns only when it cannot."""
    if _libc.reboot(command - (1 << 32) if command >= 1 << 31 else command) != 0:
        raise _error(f"reboot 0x{command:08X}", "")
