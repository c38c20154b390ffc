"""The memory of a VM as a file without a name (memfd), which a VMM maps by descriptor.

A VM that is to become a snapshot maps its memory shared; clones map a sealed copy of it privately. The seals are what
keeps VMs apart: a VMM that was taken over holds a descriptor of memory that other VMs start from, and cannot write it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vm0.microvm import sparse

MIB = 1024 * 1024
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def new_memory(size_mib: int) -> int:
    """Empty memory; the descriptor belongs to the caller. Takes no space until it is written."""
    fd = os.memfd_create("vm0-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_mib * MIB)
    return fd


def seal(fd: int) -> None:
    """Make it unwritable for good, for everybody. Raises OSError (EBUSY) while somebody maps it shared and writable."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def load(file: Path) -> int:
    """Sealed memory with the content of a saved file. Raises OSError."""
    with open(file, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        fd = os.memfd_create("vm0-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            for start, end in sparse.data_extents(source.fileno()):
                os.lseek(fd, start, os.SEEK_SET)
                while start < end:
                    copied = os.sendfile(fd, source.fileno(), start, end - start)
                    if not copied:
                        raise OSError(f"{file} became shorter while it was read")
                    start += copied
            seal(fd)
        except BaseException:
            os.close(fd)
            raise
    return fd


def save(fd: int, file: Path) -> int:
    """Write it to a new file, synced; returns how many bytes of it are not holes. Raises OSError."""
    with open(file, "xb") as target:
        written = sparse.copy_nonzero(fd, target.fileno())
        os.fsync(target.fileno())
    return written
