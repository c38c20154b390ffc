"""A measured number with its baseline, and how the two are taken: interleaved, after a warm-up, compared by medians.

The machine is shared and its speed drifts, so no number means much alone. Ours and the baseline take turns (A B A B
…) in one run, and what is reported first is their ratio.
"""

from __future__ import annotations

import dataclasses
import enum
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

Round = Callable[[], Awaitable[Sequence[float]]]


class Better(enum.Enum):
    LOWER = "lower"  # times
    HIGHER = "higher"  # rates


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A limit on `ratio` (or on `value`, where the issue is about an absolute number)."""

    limit: float
    at_most: bool = True
    on: str = "ratio"

    def text(self) -> str:
        return f"{self.on} {'≤' if self.at_most else '≥'} {self.limit:g}"

    def met(self, measured: float) -> bool:
        return measured <= self.limit if self.at_most else measured >= self.limit


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of the table. `ratio` is `value / baseline` unless `inverse`; what `baseline` is, `against` says."""

    name: str
    value: float
    unit: str
    baseline: float
    against: str
    samples: int  # of each side
    better: Better = Better.LOWER
    inverse: bool = False
    target: Target | None = None
    detail: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.baseline / self.value if self.inverse else self.value / self.baseline

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.target.met(self.ratio if self.target.on == "ratio" else self.value)

    def as_json(self) -> dict[str, object]:
        """The stable fields first: name, value, unit, baseline, ratio."""
        return {
            "name": self.name,
            "value": significant(self.value),
            "unit": self.unit,
            "baseline": significant(self.baseline),
            "ratio": significant(self.ratio),
            "against": self.against,
            "samples": self.samples,
            "better": self.better.value,
            "target": None if self.target is None else self.target.text(),
            "ok": self.ok,
            "detail": {key: significant(v) if isinstance(v, float) else v for key, v in self.detail.items()},
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How much work a run of the benchmarks may do: 1 is all of it."""

    scale: float = 1.0

    def count(self, full: int, least: int) -> int:
        return max(least, round(full * self.scale))

    def pick(self, full: int, less: int) -> int:
        """For what cannot be scaled in steps."""
        return full if self.scale >= 1 else less


async def interleaved(*turns: Round, rounds: int, warm_up: int = 1) -> list[list[float]]:
    """The samples of each, from rounds in which they take turns; the first `warm_up` rounds do not count."""
    samples: list[list[float]] = [[] for _ in turns]
    for number in range(warm_up + rounds):
        for turn, taken in zip(turns, samples, strict=True):
            found = await turn()
            if number >= warm_up:
                taken += found
    return samples


async def timed(work: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - begun)
    return seconds


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that is at least as large as `share` of all."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(samples: Sequence[float], factor: float = 1.0) -> dict[str, object]:
    """p5, p50 and p95 for a `detail`, so that a reader sees how noisy the machine was."""
    return {f"p{share}": significant(quantile(samples, share / 100) * factor) for share in (5, 50, 95)}


def significant(number: float) -> float:
    """Four digits: more would pretend precision."""
    return float(f"{number:.4g}")
