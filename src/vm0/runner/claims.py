"""How the runner gets its runs: capacity first, then poll, then claim.

A poll changes nothing and may be given up at any time. A claim is never given up in the middle: it is repeated until
it has an answer, which is safe, because the server gives the same lease to the same (runner, boot) again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from vm0.contracts import names
from vm0.contracts.errors import ErrorCode
from vm0.contracts.runner import ClaimRequest, ExecutionContext, PollRequest
from vm0.contracts.runs import Isolation
from vm0.runner.backoff import Backoff
from vm0.runner.clock import BootClock, Clock
from vm0.runner.control_plane import ControlPlane, ControlPlaneUnavailable, LeaseLost, Refused
from vm0.runner.errors import RunnerError
from vm0.runner.failpoints import Failpoints
from vm0.runner.leases import RunnerIdentity
from vm0.runner.phases import unwind

log = logging.getLogger(__name__)

CLAIM_PATIENCE_S = 60.0  # then the lease, if there is one, is left to expire
TAKEN_MIN_S, TAKEN_MAX_S = 0.002, 1.0  # after a claim somebody else got: runners in step would race for each run
SOMEBODY_ELSE = {ErrorCode.CONFLICT, ErrorCode.NOT_FOUND}


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that is ours; `asked_at` is when the answered request was sent, on the lease clock."""

    context: ExecutionContext
    asked_at: float


class Slots:
    """How many runs may be in execution. A slot is held from before the claim until nothing of the run is left."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = asyncio.Semaphore(count)

    async def reserve(self) -> None:
        await self._free.acquire()

    def release(self) -> None:
        self._free.release()


class Discovery:
    """Claims runs until `stop()`; each goes to `start`, together with the slot that was reserved for it."""

    def __init__(
        self,
        control_plane: ControlPlane,
        identity: RunnerIdentity,
        *,
        group: str,
        isolation: Isolation,
        slots: Slots,
        start: Callable[[Claim], None],
        poll_wait_s: float = 20.0,
        retry_min_s: float = 0.5,
        retry_max_s: float = 30.0,
        claim_patience_s: float = CLAIM_PATIENCE_S,
        failpoints: Failpoints | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._control_plane, self._identity = control_plane, identity
        self._slots, self._start = slots, start
        self._poll_request = PollRequest(group=group, isolation=isolation, wait_seconds=poll_wait_s)
        self._claim_request = ClaimRequest(
            runner_id=identity.runner_id, boot_id=identity.boot_id, runner_name=identity.name, isolation=isolation
        )
        self._retry_s = (retry_min_s, retry_max_s)
        self._claim_patience_s = claim_patience_s
        self._failpoints = failpoints or Failpoints()
        self._clock: Clock = clock or BootClock()
        self._stop = asyncio.Event()
        self._start_failures = Backoff(retry_min_s, retry_max_s)
        self._taken = Backoff(TAKEN_MIN_S, TAKEN_MAX_S)
        self._paused_until = 0.0

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Claim nothing more. A claim under way is finished first, and handed to `start` all the same."""
        self._stop.set()

    def note_start(self, ok: bool) -> None:
        """Whether the last run got as far as its agent. A host where none does must not use up every run's attempts."""
        if ok:
            self._start_failures.reset()
        else:
            self._paused_until = self._clock.now() + self._start_failures.next_s()

    async def run(self) -> None:
        backoff = Backoff(*self._retry_s)
        while not self._stop.is_set():
            if not await self._unless_stopped(self._slots.reserve()):
                return
            claim = None
            try:
                if await self._unless_stopped(self._pause()):
                    claim = await self._next_claim()
                    backoff.reset()
            except Exception as exc:
                await self._wait_after(exc, backoff.next_s())
            finally:
                if claim is None:
                    self._slots.release()
            if claim is not None:
                self._start(claim)

    async def _next_claim(self) -> Claim | None:
        """None: there was nothing, somebody else was faster, or we were stopped."""
        poll = asyncio.create_task(self._control_plane.poll(self._poll_request), name="poll")
        try:
            if not await self._unless_stopped(asyncio.wait({poll})):
                return None
            job = poll.result().job
        finally:
            await unwind(poll)
        if job is None:
            return None
        if not re.fullmatch(names.UUID, job.run_id):
            raise RunnerError(f"the server offered a run whose id is not {names.UUID_MEANS}")
        await self._failpoints("claims.before_claim")
        claim = await self._claim(job.run_id)
        await self._failpoints("claims.after_claim")
        return claim

    async def _claim(self, run_id: str) -> Claim | None:
        backoff = Backoff(0.1, 2.0)
        give_up_at = self._clock.now() + self._claim_patience_s
        while True:
            asked_at = self._clock.now()
            try:
                context = await self._control_plane.claim(run_id, self._claim_request)
            except Refused as exc:
                if exc.code in SOMEBODY_ELSE:
                    log.info("%s", exc, extra={"action": "claim_taken", "run_id": run_id})
                    await self._unless_stopped(self._clock.sleep(self._taken.next_s()))
                    return None
                raise
            except ControlPlaneUnavailable as exc:
                if self._clock.now() >= give_up_at:
                    raise
                log.warning("%s; claiming again", exc, extra={"action": "claim_repeated", "run_id": run_id})
                await self._clock.sleep(backoff.next_s())
                continue
            if context.run_id != run_id:
                raise RunnerError(f"the claim of run {run_id} was answered with run {context.run_id!r}")
            extra = {"action": "run_claimed", "run_id": run_id, "epoch": context.lease.epoch}
            self._taken.reset()
            log.info("run claimed, attempt %d", context.attempt, extra=extra)
            return Claim(context, asked_at)

    async def _pause(self) -> None:
        while (remaining_s := self._paused_until - self._clock.now()) > 0:
            await self._clock.sleep(min(1.0, remaining_s))

    async def _wait_after(self, exc: Exception, wait_s: float) -> None:
        extra = {"action": "discovery_failed"}
        if isinstance(exc, Refused):
            log.error("%s (%s); next try in %.1f s", exc, exc.hint, wait_s, extra=extra)
        elif isinstance(exc, (ControlPlaneUnavailable, LeaseLost)):
            log.warning("%s; next try in %.1f s", exc, wait_s, extra=extra)
        else:
            log.error("discovery failed: %r; next try in %.1f s", exc, wait_s, exc_info=exc, extra=extra)
        await self._unless_stopped(self._clock.sleep(wait_s))

    async def _unless_stopped(self, work: object) -> bool:
        """Whether `work` was finished before the stop; if not, it was cancelled."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        stop = asyncio.create_task(self._stop.wait(), name="discovery-stop")
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            task.result()
            return True
        finally:
            await unwind(task, stop)
