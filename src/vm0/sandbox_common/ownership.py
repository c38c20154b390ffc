"""Whose a folder is: private folders, the lock of the one process that uses them, and short folders for sockets."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
from pathlib import Path

from vm0.sandbox import BackendUnavailable

POLL_S = 0.05  # of a lock that somebody else has, for as long as it takes to make a snapshot


def make_private(path: Path) -> None:
    """A directory that only we can enter; refuses one of somebody else's or a symbolic link."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise BackendUnavailable(f"{path} is not a directory of ours", hint="remove it or choose another one")
    if found.st_mode & 0o077:
        path.chmod(0o700)


def socket_directory(root: Path) -> Path:
    """Short, and the same for the same root, so that a restarted owner finds the sockets of its past self."""
    base = Path("/run/vm0") if os.geteuid() == 0 else Path(f"/tmp/vm0-{os.geteuid()}")
    return base / short_hash(root)


def short_hash(path: Path) -> str:
    """Names a folder where there is no room for its path; the same for every path that leads to it."""
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


def locked(path: Path) -> int:
    """The descriptor that holds the lock of `path`'s folder; closing it, or dying, gives it up. Raises
    BackendUnavailable with the holder's pid when somebody else has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise BackendUnavailable(
            f"{path.parent} is in use by process {holder}", hint="use another state directory, or stop that process"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


async def locked_when_free(path: Path) -> int:
    """As `locked`, but waits for the holder, however long it takes. Cancelled, it holds nothing."""
    while True:
        try:
            return locked(path)
        except BackendUnavailable:
            await asyncio.sleep(POLL_S)  # a thread that waits in flock() could not be cancelled
