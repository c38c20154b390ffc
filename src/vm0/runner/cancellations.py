"""Hears at once that a user wants a run ended. Only a hint: the renewal of the lease says the same, some seconds later,
so whatever goes wrong here costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import logging

from vm0.contracts.runner import CancellationsRequest
from vm0.runner.backoff import Backoff
from vm0.runner.control_plane import ControlPlane
from vm0.runner.errors import RunnerError
from vm0.runner.interruption import Interruption, StopCause

log = logging.getLogger(__name__)

WAIT_S = 25.0  # below the half minute after which many proxies cut a quiet connection
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0


class CancellationListener:
    """`watch` a run, `unwatch` it at its end; `run` in a task of its own asks the server for as long as it lives."""

    def __init__(self, control_plane: ControlPlane, runner_id: str) -> None:
        self._control_plane, self._runner_id = control_plane, runner_id
        self._watched: dict[str, list[Interruption]] = {}
        self._told: set[str] = set()
        self._something_runs = asyncio.Event()

    def watch(self, run_id: str, interruption: Interruption) -> None:
        self._watched.setdefault(run_id, []).append(interruption)
        self._something_runs.set()

    def unwatch(self, run_id: str, interruption: Interruption) -> None:
        """A run can be watched twice for a moment: an ended attempt being destroyed, and its next one."""
        left = [other for other in self._watched.get(run_id, []) if other is not interruption]
        if left:
            self._watched[run_id] = left
        else:
            self._watched.pop(run_id, None)
            self._told.discard(run_id)
        if not self._watched:
            self._something_runs.clear()

    async def run(self) -> None:
        """Until cancelled; never raises otherwise. Asks only while something runs."""
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        while True:
            await self._something_runs.wait()
            known = tuple(sorted(self._told))
            request = CancellationsRequest(runner_id=self._runner_id, known=known, wait_seconds=WAIT_S)
            try:
                answer = await self._control_plane.cancellations(request)
                backoff.reset()
            except RunnerError as exc:
                log.debug("%s", exc, extra={"action": "cancellations_failed"})
                await asyncio.sleep(backoff.next_s())
                continue
            for run_id in answer.run_ids:
                self._told.add(run_id)
                for interruption in self._watched.get(run_id, []):
                    interruption.request(StopCause.CANCEL_REQUESTED)
            if not answer.run_ids:
                await asyncio.sleep(0)  # a server that answers at once must not starve the loop
