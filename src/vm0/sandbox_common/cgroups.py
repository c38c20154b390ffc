"""A cgroup v2 directory per sandbox, where this host lets us make one: whatever a sandbox started can then be killed as
a whole, even after a crash of the runner."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

REMOVE_S = 5.0  # for killed processes to be gone


def writable_parent() -> Path | None:
    """Where sandboxes' groups may be made: our own group if it is ours, else the root of the hierarchy, else None."""
    mount = _mount_point()
    if mount is None:
        return None
    for candidate in (mount / _own_group(), mount):
        probe = candidate / f"vm0-probe-{os.getpid()}"
        try:
            probe.mkdir()
            can_kill = (probe / "cgroup.kill").exists()  # Linux 5.14
            probe.rmdir()
        except OSError:
            continue
        if can_kill:
            return candidate
    return None


def add(group: Path, pid: int) -> None:
    """Move a process, and what it will fork, into the group."""
    (group / "cgroup.procs").write_text(str(pid))


async def remove(group: Path) -> None:
    """Kill everything in the group and below and remove the directories. Idempotent; raises TimeoutError after 5 s."""
    with contextlib.suppress(FileNotFoundError):
        (group / "cgroup.kill").write_text("1")
    async with asyncio.timeout(REMOVE_S):
        delay_s = 0.001
        while not _try_remove(group):
            await asyncio.sleep(delay_s)  # no event tells that a killed process has been reaped by its parent
            delay_s = min(delay_s * 2, 0.1)


def _try_remove(group: Path) -> bool:
    try:
        for child in [entry for entry in group.iterdir() if entry.is_dir()]:
            if not _try_remove(child):
                return False
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _mount_point() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:].strip("/")
    return ""
