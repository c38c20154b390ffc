"""How long to wait before the next try: doubling, with jitter so that many runners do not come back together."""

from __future__ import annotations

import random


class Backoff:
    """`next_s()` is between half of the current step and all of it; `reset()` after a success."""

    def __init__(self, minimum_s: float, maximum_s: float) -> None:
        self._minimum_s, self._maximum_s = minimum_s, maximum_s
        self.failures = 0

    def next_s(self) -> float:
        step_s = min(self._maximum_s, self._minimum_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return step_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self.failures = 0
