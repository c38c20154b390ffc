"""CPU, memory and disk of the guest: one JSON line every few seconds in metrics.jsonl."""

from __future__ import annotations

import json
import os

from vm0.guest_common.clock import rfc3339_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

METRICS_NAME = "metrics.jsonl"
MAX_METRICS_BYTES = 16 * 1024 * 1024  # 24 hours are 3 MiB

CpuTimes = tuple[int, int]  # idle and total, in ticks since boot


def cpu_times(stat: str) -> CpuTimes:
    """From the text of /proc/stat. Waiting for a disk counts as idle; guest time is in user time already."""
    ticks = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    return sum(ticks[3:5]), sum(ticks)


def cpu_percent(before: CpuTimes, now: CpuTimes) -> float:
    total = now[1] - before[1]
    idle = now[0] - before[0]
    return 0.0 if total <= 0 else round(min(100.0, max(0.0, 100.0 * (total - idle) / total)), 2)


def memory_bytes(meminfo: str) -> tuple[int, int]:
    """Used and total, from the text of /proc/meminfo."""
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total - available, total


class MetricsSampler:
    """`run` is the body of its thread. A sample that cannot be taken is left out."""

    def __init__(self, path: str, interval_s: float, stop: threading.Event, root: str = "/") -> None:
        self._path, self._interval_s, self._stop, self._root = path, interval_s, stop, root
        self._before: CpuTimes = (0, 0)  # so the first sample is the average since boot

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                self._append(self.sample())
            except (OSError, ValueError, LookupError):
                pass  # no such file here, or no room: a gap in a graph
            self._stop.wait(self._interval_s)

    def sample(self) -> dict[str, object]:
        now = cpu_times(_text("/proc/stat"))
        cpu, self._before = cpu_percent(self._before, now), now
        used, total = memory_bytes(_text("/proc/meminfo"))
        disk = os.statvfs(self._root)
        return {
            "ts": rfc3339_ms(),
            "cpu": cpu,
            "mem_used": used,
            "mem_total": total,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _append(self, sample: dict[str, object]) -> None:
        with open(self._path, "ab") as file:
            if file.tell() < MAX_METRICS_BYTES:
                file.write(json.dumps(sample, separators=(",", ":")).encode() + b"\n")


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
