"""Why a run has to stop before its end: the first cause stands, except that a lost lease overrides the others."""

from __future__ import annotations

import asyncio
import enum


class StopCause(enum.Enum):
    CANCEL_REQUESTED = "cancel_requested"  # its user asked
    RUNNER_STOPPED = "runner_stopped"  # this runner was told to end what it runs
    LEASE_EXPIRED = "lease_expired"  # could not be renewed in time; the server may believe we are gone
    LEASE_LOST = "lease_lost"  # the server said so: somebody else may have the run

    @property
    def fenced(self) -> bool:
        """Acting on, even gracefully, might overlap with another runner."""
        return self in (StopCause.LEASE_EXPIRED, StopCause.LEASE_LOST)


class Interruption:
    """One per run. `wait()` may be awaited by several tasks and is safe to cancel."""

    def __init__(self) -> None:
        self.cause: StopCause | None = None
        self._raised = asyncio.Event()
        self._fenced = asyncio.Event()

    def request(self, cause: StopCause) -> None:
        """Idempotent."""
        if self.cause is None or (cause.fenced and not self.cause.fenced):
            self.cause = cause
        self._raised.set()
        if self.cause.fenced:
            self._fenced.set()

    async def wait(self) -> StopCause:
        await self._raised.wait()
        return self.cause or StopCause.RUNNER_STOPPED

    async def wait_fenced(self) -> None:
        """Until the run must not even end gracefully any more."""
        await self._fenced.wait()
