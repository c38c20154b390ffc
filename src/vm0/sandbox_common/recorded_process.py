"""A process that must be found again by the next owner of its folder, should this one crash.

It is known by its number and its start time, so that a reused number is never signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

TERMINATE_S = 5.0


def record_process(file: Path, pid: int) -> None:
    """Note a child that is not reaped yet."""
    file.write_text(f"{pid} {_start_time(pid)}\n")


async def end_recorded(file: Path, *, polite: bool = True) -> None:
    """End the recorded process if it still lives: SIGTERM (`polite`), 5 s, SIGKILL; returns when it is gone, or after
    another 5 s. No record, or an unreadable one: nothing to do."""
    pidfd = _recorded(file)
    if pidfd < 0:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            if polite:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                await wait_readable(pidfd, TERMINATE_S)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await wait_readable(pidfd, TERMINATE_S)
    finally:
        os.close(pidfd)


async def wait_readable(fd: int, limit_s: float | None) -> bool:
    """Whether it became readable (a pidfd: the process ended) within the limit; None waits for ever."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(limit_s):
            await readable.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)


def _recorded(file: Path) -> int:
    """A pidfd of the process that the file names, -1 when it is gone."""
    try:
        pid, started = file.read_text().split()
        pidfd = os.pidfd_open(int(pid))
    except (OSError, ValueError):
        return -1
    if _start_time(int(pid)) == started:
        return pidfd
    os.close(pidfd)
    return -1


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: ticks since boot; unique together with the number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
