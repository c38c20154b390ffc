"""One run's lease: renewed every third of its time, and given up by ourselves before the server can give it away.

The server takes an expired lease back after `ttl`. We stop acting at 2/3 of it without a successful renewal, counted
from the moment the last answered request was *sent*: the remaining third is for killing the sandbox. Only that
deadline and an explicit LEASE_LOST fence a run; a server that does not answer for a while changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from vm0.contracts.errors import ErrorCode
from vm0.contracts.runner import LeaseAnswer, LeaseRequest
from vm0.contracts.runs import TimelineStep
from vm0.runner.clock import BootClock, Clock
from vm0.runner.control_plane import ControlPlane, ControlPlaneUnavailable, LeaseLost, Refused
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.phases import unwind

log = logging.getLogger(__name__)

RENEW_PART = 1 / 3
ACT_PART = 2 / 3
LONGEST_SLEEP_S = 1.0  # so that a host that was suspended notices within a second that its lease is over
RETRY_PART = 1 / 30  # of the ttl, after a renewal that failed
HEDGE_PART = 1 / 6  # of the ttl without an answer: try again beside it, one dead connection must not end a lease
MAX_ATTEMPTS = 3  # at the same time
GONE = {ErrorCode.NOT_FOUND, ErrorCode.CONFLICT}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerIdentity:
    """Who claims: `runner_id` stays for the life of the state directory, `boot_id` is new at each start."""

    runner_id: str
    boot_id: str
    name: str


class LeaseKeeper:
    """Run `keep()` in a task of its own; it ends when the lease does. Raises the interruption of its run."""

    def __init__(
        self,
        control_plane: ControlPlane,
        identity: RunnerIdentity,
        run_id: str,
        *,
        epoch: int,
        ttl_s: float,
        asked_at: float,
        interruption: Interruption,
        timeline: Callable[[], tuple[TimelineStep, ...]] = tuple,
        clock: Clock | None = None,
    ) -> None:
        self._control_plane, self._identity, self._run_id = control_plane, identity, run_id
        self._interruption, self._timeline = interruption, timeline
        self._clock: Clock = clock or BootClock()
        self.epoch = epoch
        self._agent_started = False
        self._marked = asyncio.Event()
        self._lost: StopCause | None = None
        self._ttl_s = ttl_s
        self._act_until = asked_at + ttl_s * ACT_PART
        self._renew_at = asked_at + ttl_s * RENEW_PART

    @property
    def held(self) -> bool:
        """Whether the run is ours at this moment."""
        return self._lost is None and self._clock.now() < self._act_until

    async def keep(self) -> None:
        """Renew until the lease is lost or the task is cancelled."""
        renewals = asyncio.create_task(self._renew_always(), name=f"lease-{self._run_id}")
        try:
            while self._lost is None:
                remaining_s = self._act_until - self._clock.now()
                if remaining_s <= 0:
                    self._fence(StopCause.LEASE_EXPIRED)
                    break
                await self._clock.sleep(min(remaining_s, LONGEST_SLEEP_S))
        finally:
            renewals.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewals

    async def mark_agent_started(self) -> None:
        """Tell the server that the agent starts now, so that a lost lease never gives this run to anybody else.

        Returns only when the server said yes and the lease is held; raises LeaseLost else. Retries while the lease
        lasts. Whatever it raises, the server may take the agent as started; a release tells it otherwise.
        """
        self._agent_started = True
        await self._attempt_until(self._marked.is_set)
        if self._lost is None and not self.held:
            self._fence(StopCause.LEASE_EXPIRED)
        if not self.held:
            raise LeaseLost(f"the lease of run {self._run_id} ended before its agent could start")

    async def _renew_always(self) -> None:
        while self.held:
            wait_s = self._renew_at - self._clock.now()
            if wait_s > 0:
                await self._clock.sleep(min(wait_s, LONGEST_SLEEP_S))
            else:
                await self._attempt_until(self._not_due)

    def _not_due(self) -> bool:
        return self._renew_at > self._clock.now()

    async def _attempt_until(self, done: Callable[[], bool]) -> None:
        """Try to renew until `done` or the lease is over; an attempt without an answer is not waited for alone."""
        attempts: set[asyncio.Task[None]] = set()
        try:
            while self.held and not done():
                attempts.add(asyncio.create_task(self._renew(), name=f"renew-{self._run_id}"))
                _, attempts = await asyncio.wait(
                    attempts, timeout=self._ttl_s * HEDGE_PART, return_when=asyncio.FIRST_COMPLETED
                )
                if not done() and self.held:
                    await self._clock.sleep(min(1.0, self._ttl_s * RETRY_PART))
                if len(attempts) >= MAX_ATTEMPTS:
                    _, attempts = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await unwind(*attempts)

    async def _renew(self) -> None:
        """One try; never raises. A renewal whose answer comes after the deadline does not revive the lease."""
        asked_at, act_until = self._clock.now(), self._act_until
        request = LeaseRequest(
            runner_id=self._identity.runner_id,
            boot_id=self._identity.boot_id,
            epoch=self.epoch,
            agent_started=self._agent_started,
            timeline=self._timeline(),
        )
        extra = {"action": "lease_renewal_failed", "run_id": self._run_id}
        try:
            answer = await self._control_plane.renew(self._run_id, request)
        except LeaseLost:
            self._fence(StopCause.LEASE_LOST)
        except Refused as exc:
            if exc.code in GONE:
                self._fence(StopCause.LEASE_LOST)
            else:  # a token being replaced, for example: worth trying until the deadline
                log.error("%s", exc, extra=extra)
        except ControlPlaneUnavailable as exc:
            log.warning("%s", exc, extra=extra)
        except Exception:
            log.exception("lease renewal failed", extra=extra)
        else:
            if self._lost is None and self._clock.now() < max(act_until, self._act_until):
                self._renewed(asked_at, request, answer)

    def _renewed(self, asked_at: float, request: LeaseRequest, answer: LeaseAnswer) -> None:
        self._ttl_s = answer.ttl_seconds
        self._act_until = max(self._act_until, asked_at + answer.ttl_seconds * ACT_PART)
        self._renew_at = max(self._renew_at, asked_at + answer.ttl_seconds * RENEW_PART)
        if request.agent_started:
            self._marked.set()
        if answer.cancel_requested:
            self._interruption.request(StopCause.CANCEL_REQUESTED)

    def _fence(self, cause: StopCause) -> None:
        if self._lost is None:
            self._lost = cause
            log.warning("lease is over: %s", cause.value, extra={"action": "lease_over", "run_id": self._run_id})
            self._interruption.request(cause)
