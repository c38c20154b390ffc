"""What processes look like from outside: memory, descriptors, whether they live."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

MIB = 1024 * 1024
IDLE_S, IDLE_CPU_S = 0.5, 0.2  # who waits uses less than this processor time in so many seconds
SLOWER = int(os.environ.get("TEST_SLOWER", "1"))  # times slower than hardware: an emulated machine says so


def rss_bytes(pid: int) -> int:
    return _status_kib(pid, "VmRSS") * 1024


def peak_rss_bytes(pid: int) -> int:
    """Since the start or the last `reset_peak`."""
    return _status_kib(pid, "VmHWM") * 1024


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} of process {pid}")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def alive(pid: int) -> bool:
    """Runs, and is not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until_dead(*pids: int, limit_s: float = 5.0) -> None:
    """A killed process needs a moment; nothing tells a stranger when it is gone, so look again and again."""
    deadline = time.monotonic() + limit_s
    while living := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {living}"
        await asyncio.sleep(0.01)


async def until_settled(pid: int, most: int, limit_s: float = 5.0) -> None:
    """Until the process has at most so many open descriptors."""
    deadline = time.monotonic() + limit_s
    while (count := descriptors(pid)) > most:
        assert time.monotonic() < deadline, f"{count} descriptors, {most} expected"
        await asyncio.sleep(0.01)


async def until_idle(pid: int, limit_s: float = 5.0) -> None:
    """Until the process waits: a slow machine may still be at what came before, one that spins never ends."""
    deadline = time.monotonic() + limit_s
    while True:
        before = cpu_s(pid)
        await asyncio.sleep(IDLE_S)
        used = cpu_s(pid) - before
        if used < IDLE_CPU_S:
            return
        assert time.monotonic() < deadline, f"it spins: {used:.2f} s of processor time in {IDLE_S:g} s"
