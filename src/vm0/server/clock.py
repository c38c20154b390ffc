"""Time, injectable: wall time for people and tokens, monotonic time for leases.

Leases never look at the wall clock, so that a step of it (NTP, a suspended laptop) takes no lease away.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Unix milliseconds."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds that only grow; means nothing to another process."""
        ...


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000
