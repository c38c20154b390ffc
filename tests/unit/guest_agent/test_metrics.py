from __future__ import annotations

import pathlib
import threading

from vm0.guest_agent.metrics import MetricsSampler, cpu_percent, cpu_times, memory_bytes

STAT = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1\n"


def test_cpu() -> None:
    assert cpu_times(STAT) == (850, 1000)
    assert cpu_percent((0, 0), (850, 1000)) == 15.0
    assert cpu_percent((850, 1000), (850, 1000)) == 0.0
    assert cpu_percent((850, 1000), (860, 1030)) == 66.67
    assert cpu_percent((850, 1000), (800, 1030)) == 100.0  # counters of a VM may go back


def test_memory() -> None:
    text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n"
    assert memory_bytes(text) == (600 * 1024, 1000 * 1024)


def test_a_real_sample(tmp_path: pathlib.Path) -> None:
    sample = MetricsSampler(str(tmp_path / "m"), 5, threading.Event()).sample()
    assert list(sample) == ["ts", "cpu", "mem_used", "mem_total", "disk_used", "disk_total"]
    assert 0 < sample["mem_used"] < sample["mem_total"]  # type: ignore[operator]
