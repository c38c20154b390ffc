"""The runner's folder on this host, owned by one runner at a time: ownership is a held `flock`, never a file's content.

::

    runner.lock    held by the runner; its text is the holder's pid, for people
    runner-id      the runner's identity, made once
    status.json    what it does now
    spool/         journals of claims and undelivered reports
    logs/          logs of the newest runs
    tmp/           files in transit; emptied at start
    process/       of the process backend
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from vm0.contracts import names
from vm0.runner.errors import RunnerError, StateDirectoryInUse
from vm0.runner.spool import Spool


class StateDirectory:
    """Paths and the lock. Nothing but `owned` may be used by a process that does not hold the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = Spool(root / "spool")
        self.logs = root / "logs"
        self.transit = root / "tmp"
        self.status_file = root / "status.json"

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the folder; raises StateDirectoryInUse. The lock ends with the process, whatever ends it."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.root / "runner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise RunnerError(
                f"state directory {self.root}: {exc.strerror}", hint="set state_dir to a directory of your own"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateDirectoryInUse(str(self.root), _holder(descriptor)) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            self._prepare()
            yield
        finally:
            os.close(descriptor)

    def runner_id(self) -> str:
        """The same for the life of the folder, because leases of a former runner are released under it."""
        path = self.root / "runner-id"
        try:
            found = path.read_text("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            found = ""
        if not re.fullmatch(names.UUID, found):
            found = str(uuid.uuid4())
            write_atomically(path, f"{found}\n".encode())
        return found

    def prune_logs(self, kept: int) -> None:
        """Remove all but the newest log files."""
        with os.scandir(self.logs) as entries:
            files = [(entry.stat(follow_symlinks=False).st_mtime_ns, entry.path) for entry in entries]
        for _, path in heapq.nsmallest(max(0, len(files) - kept), files):
            Path(path).unlink(missing_ok=True)

    def _prepare(self) -> None:
        shutil.rmtree(self.transit, ignore_errors=True)
        for folder in (self.logs, self.transit):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spool.prepare()


def write_atomically(path: Path, data: bytes) -> None:
    """Complete or not there at all; not synced, so only for what a crash may lose. One writer per path."""
    temporary = path.with_name(f".{path.name}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def _holder(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
