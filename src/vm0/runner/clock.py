"""The clock of leases and back-offs. It also counts the time a host was suspended, so a lease cannot oversleep."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never go back."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class BootClock:
    """CLOCK_BOOTTIME: like the monotonic clock, but it goes on during suspend. Sleeps do not: wake up often."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def wall_ms() -> int:
    """Unix milliseconds, for people and for the server."""
    return time.time_ns() // 1_000_000
