"""Copies of large, mostly empty files: only what holds data is read and written.

A disk or the memory of a VM is a file of gigabytes of which some megabytes are in use, so its holes are found
(SEEK_DATA, SEEK_HOLE) and left out, and blocks of zeros become holes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 1024 * 1024
PAGE_BYTES = 4096
ZEROS = bytes(BLOCK_BYTES)
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}


def clone_file(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """A new file with the content of `source`: by reflink where the file system has it, else a sparse copy. Raises
    OSError (FileExistsError too); then `target` is not there."""
    with open(source, "rb") as file:
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if not _reflinked(file.fileno(), out):
                copy_extents(file.fileno(), out)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(out)


def copy_extents(source: int, target: int) -> None:
    """Copy the data of one descriptor into another that is empty; both keep their offsets undefined. The kernel copies
    where it can (`copy_file_range`), so nothing passes through this process."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in data_extents(source):
        while start < end:
            try:
                copied = os.copy_file_range(source, target, end - start, start, start)
            except OSError as exc:
                if exc.errno not in NO_REFLINK:
                    raise
                copied = os.pwrite(target, os.pread(source, min(BLOCK_BYTES, end - start), start), start)
            if not copied:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += copied


def copy_nonzero(source: int, target: int) -> int:
    """As `copy_extents`, but pages of zeros become holes; returns how many bytes were written. For memory, of which a
    guest has touched much that is zero again."""
    os.ftruncate(target, os.fstat(source).st_size)
    written = 0
    for start, end in data_extents(source):
        while start < end:
            block = os.pread(source, min(BLOCK_BYTES, end - start), start)
            if not block:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            for first, last in nonzero_runs(block):
                written += os.pwrite(target, memoryview(block)[first:last], start + first)
            start += len(block)
    return written


def nonzero_runs(block: bytes) -> Iterator[tuple[int, int]]:
    """The runs of whole pages of `block` that are not all zero, as (first, last) offsets."""
    if ZEROS.startswith(block):
        return
    first = -1
    for at in range(0, len(block), PAGE_BYTES):
        empty = ZEROS.startswith(block[at : at + PAGE_BYTES])
        if not empty and first < 0:
            first = at
        elif empty and first >= 0:
            yield first, at
            first = -1
    if first >= 0:
        yield first, len(block)


def data_extents(fd: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, as (start, end)."""
    size = os.fstat(fd).st_size
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def data_bytes(fd: int) -> int:
    """How many bytes of the file are not holes."""
    return sum(end - start for start, end in data_extents(fd))


def _reflinked(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as exc:
        if exc.errno not in NO_REFLINK:
            raise
        return False
    return True
