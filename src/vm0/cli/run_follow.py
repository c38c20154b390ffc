"""Follow a run to its end: its events without a gap, its phases as they are reported, through short outages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vm0.cli.api import ApiClient, ApiError
from vm0.cli.event_lines import result_text
from vm0.cli.progress import Progress
from vm0.contracts.runs import RunStatus, RunView

T = TypeVar("T")
EVENTS_WAIT_S = 20  # how long the server may hold an empty page
PHASES_EVERY_S = 0.5
OUTAGE_S = 120.0  # how long the server may be away before we give up; the run itself goes on meanwhile
RETRY_MAX_S = 5.0
PENDING_NOTE_S = 5.0  # a run that waits longer for a runner than this is worth a word


class Follower:
    """What following a run has shown so far."""

    def __init__(self, client: ApiClient, run_id: str, progress: Progress) -> None:
        self._client, self._run_id, self._progress = client, run_id, progress
        self._shown: set[tuple[int, str, int]] = set()
        self._events_came = False
        self.result = ""  # the agent's last final answer

    async def to_end(self) -> RunView:
        """The run when it has ended. Cancel-safe: the run is not touched. Raises ApiError after a long outage."""
        phases = asyncio.create_task(self._phases(), name=f"phases of {self._run_id}")
        try:
            missing = await self._events()
        finally:
            phases.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await phases
        run = await self._patiently(lambda: self._client.run(self._run_id))
        self._show_phases(run)
        if missing is not None:
            self._progress.note(f"events are missing: number {missing} never arrived, what came after it is not shown")
        return run

    async def _events(self) -> int | None:
        after = -1
        while True:
            page = await self._patiently(lambda: self._client.events(self._run_id, after=after, wait_s=EVENTS_WAIT_S))  # noqa: B023
            for event in page.events:
                self._events_came = True
                self._progress.event(event)
                self.result = result_text(event) or self.result
            after = page.next_after
            if page.complete:
                return page.missing

    async def _phases(self) -> None:
        since = time.monotonic()
        noted = False
        while True:
            with contextlib.suppress(ApiError):  # `_events` tells of an outage and decides when it is too long
                run = await self._client.run(self._run_id)
                self._show_phases(run)
                if run.status is RunStatus.PENDING and not noted and time.monotonic() - since > PENDING_NOTE_S:
                    noted = True
                    self._progress.note(await self._why_pending(run))
            await asyncio.sleep(PHASES_EVERY_S)

    async def _why_pending(self, run: RunView) -> str:
        wanted = f"of group {run.group} with isolation `{run.least_isolation.value}` or better"
        offers = [view.runner for view in (await self._client.runners()).runners]
        if any(offer.group == run.group and offer.isolation.at_least(run.least_isolation) for offer in offers):
            return f"waiting: the runners {wanted} are busy"
        return f"waiting: no runner {wanted} is connected"

    def _show_phases(self, run: RunView) -> None:
        for step in run.timeline:
            key = (step.attempt, step.phase, step.started_at_ms)
            if step.duration_ms is None and not run.status.terminal:
                continue  # it is going on
            if key not in self._shown:
                self._shown.add(key)
                self._progress.phase(step)
        if run.status is RunStatus.PENDING:
            self._progress.doing("waiting for a runner")
        elif run.timeline and not self._events_came:
            self._progress.doing(run.timeline[-1].phase)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """`call`, repeated while the server cannot be reached, for `OUTAGE_S` at most."""
        since: float | None = None
        delay = 0.5
        while True:
            try:
                return await call()
            except ApiError as exc:
                now = time.monotonic()
                if since is None:
                    since = now
                    if exc.retry:
                        self._progress.note(f"{exc}; trying again for {OUTAGE_S:.0f} s, the run goes on meanwhile")
                if not exc.retry or now - since > OUTAGE_S:
                    exc.hint = f"the run may still be going: `vm0 runs show {self._run_id}` will tell"
                    raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX_S)
