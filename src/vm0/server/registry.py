"""What is known only in memory: which runners live, and which runs were offered a moment ago.

Both are rebuilt within seconds after a restart, so neither is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vm0.contracts.runner import RunnerHeartbeat, RunnerView
from vm0.server.clock import Clock

MAX_RUNNERS = 4096
OFFER_MS = 500  # about the time between the answer to a poll and the claim
MAX_OFFERS = 10_000


class RunnerRegistry:
    """The last heartbeat of each runner, for as long as it is recent."""

    def __init__(self, clock: Clock, forget_s: float) -> None:
        self._clock, self._forget_ms = clock, int(forget_s * 1000)
        self._seen: dict[str, tuple[int, int, RunnerHeartbeat]] = {}

    def heard(self, heartbeat: RunnerHeartbeat) -> None:
        self._seen.pop(heartbeat.runner_id, None)
        self._seen[heartbeat.runner_id] = (self._clock.monotonic_ms(), self._clock.now_ms(), heartbeat)
        while len(self._seen) > MAX_RUNNERS:
            del self._seen[next(iter(self._seen))]

    def views(self) -> tuple[RunnerView, ...]:
        """Runners heard of lately, by name."""
        oldest = self._clock.monotonic_ms() - self._forget_ms
        self._seen = {key: entry for key, entry in self._seen.items() if entry[0] >= oldest}
        found = [RunnerView(last_seen_ms=seen, runner=runner) for _, seen, runner in self._seen.values()]
        return tuple(sorted(found, key=lambda view: (view.runner.runner_name, view.runner.runner_id)))


class Offers:
    """Spreads pollers over the queue, so that they do not all claim its head and all but one lose.

    Only a preference: when every candidate was offered just now, the oldest is offered again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, int] = {}

    def pick(self, candidates: Sequence[Any]) -> Any:
        """One of the candidates (rows with a `run_id`, at least one), oldest first."""
        now = self._clock.monotonic_ms()
        if len(self._until) > MAX_OFFERS:
            self._until = {key: until for key, until in self._until.items() if until > now}
        chosen = next((row for row in candidates if self._until.get(row.run_id, 0) <= now), candidates[0])
        self._until[chosen.run_id] = now + OFFER_MS
        return chosen

    def settled(self, run_id: str) -> None:
        """It was claimed or came back: nothing to remember."""
        self._until.pop(run_id, None)
