"""What the numbers were measured on: without it they say little."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import sqlite3


def fingerprint() -> dict[str, str]:
    """Name to text, in the order in which it is shown."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} × {processor()}",
        "memory": f"{memory_gib:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
    }


def load() -> str:
    """Load averages: 1, 5 and 15 minutes. What else ran on the machine is in them."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"
