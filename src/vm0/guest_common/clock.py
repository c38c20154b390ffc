"""Wall-clock times as every guest program writes them."""

from __future__ import annotations

import time


def rfc3339_ms(at_s: float | None = None) -> str:
    """`2026-03-01T12:00:00.123Z`: UTC with milliseconds, always 24 characters. Without `at_s`, now."""
    at_ms = int((time.time() if at_s is None else at_s) * 1000)
    seconds, milliseconds = divmod(at_ms, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


def elapsed_ms(since_monotonic_s: float) -> float:
    """Milliseconds since a `time.monotonic()`, to a microsecond."""
    return round((time.monotonic() - since_monotonic_s) * 1000, 3)
