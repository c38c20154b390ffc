"""The system calls that Python 3.11 lacks, one wrapper each. `unshare` and `setns` move the calling *thread* alone."""

from __future__ import annotations

import ctypes
import os

# include/uapi/linux/sched.h, include/uapi/linux/mount.h, fs/namespace.c
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 0x100000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        raise _error("unshare", hex(flags))


def setns(fd: int, kind: int) -> None:
    if _libc.setns(fd, kind) != 0:
        raise _error("setns", f"descriptor {fd}")


def mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None) != 0:
        raise _error("mount", target)


def umount(target: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), flags) != 0:
        raise _error("umount", target)


def prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise _error("prctl", f"option {option}")


def _error(call: str, operand: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}", operand)
