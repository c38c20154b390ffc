"""Which process has which pool index: lock files in one directory, held by `flock` for as long as the process lives.

Files are made, tried and removed only by whoever has the directory itself locked, so nobody locks a file that another
one is removing, and nobody takes a probe for an owner. The kernel drops the locks of a killed process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vm0.microvm.netns.errors import NamespaceError
from vm0.microvm.netns.plan import POOLS


@dataclass(frozen=True, slots=True)
class Lease:
    pool: int
    path: Path
    fd: int


class LeaseDirectory:
    """All methods but `locked` are for its holder. Blocking: `locked` waits for others, who may be removing orphans."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory (0700) if need be; refuses a symbolic link or somebody else's with NamespaceError."""
        self._directory.parent.mkdir(parents=True, exist_ok=True)  # others keep things there that VMMs must reach
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        found = self._directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise NamespaceError(f"{self._directory} is not a directory of ours", hint="remove it")
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o700)
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def take(self) -> Lease:
        """The lowest index that nobody holds. Raises NamespaceError if there is none."""
        for pool in range(POOLS):
            fd = self._try(pool)
            if fd is not None:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)  # for people; the lock is what counts
                return Lease(pool, self._path(pool), fd)
        raise NamespaceError(
            f"all {POOLS} network pools of this host are in use",
            hint=f"stop a runner; the files in {self._directory} contain the process ids of the owners",
        )

    def release(self, lease: Lease) -> None:
        with contextlib.suppress(FileNotFoundError):
            lease.path.unlink()
        os.close(lease.fd)

    def held(self) -> set[int]:
        """The indices in use, by whichever process. Removes the files of the others."""
        in_use = set()
        for pool in range(POOLS):
            if not self._path(pool).exists():
                continue
            fd = self._try(pool)
            if fd is None:
                in_use.add(pool)
            else:
                self._path(pool).unlink()
                os.close(fd)
        return in_use

    def _path(self, pool: int) -> Path:
        return self._directory / f"pool-{pool:02x}.lock"

    def _try(self, pool: int) -> int | None:
        fd = os.open(self._path(pool), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd
