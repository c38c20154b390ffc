"""The one phase that has no time limit of its own: the agent runs until it ends, is asked to, or has to be killed.

Ladder of an end that we want: ask the guest (SIGTERM, grace, SIGKILL there), then kill the sandbox. A run that may no
longer act skips the asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from vm0.runner.config import PhaseLimits
from vm0.runner.host_logs import BoundedLog
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.outcomes import AgentEnd
from vm0.runner.phases import unwind
from vm0.sandbox import ExecRequest, ExecResult, Process, Reason, Sandbox, SandboxError, SandboxOperationError

log = logging.getLogger(__name__)

AFTER_KILL_S = 5.0  # for the end of the agent to be noticed after its sandbox was killed
CRASH_TEXT_S = 1.0


class AgentSupervisor:
    """Used once per run. Never raises for anything that the guest does."""

    def __init__(self, sandbox: Sandbox, limits: PhaseLimits, interruption: Interruption, output: BoundedLog) -> None:
        self._sandbox, self._limits = sandbox, limits
        self._interruption, self._output = interruption, output

    async def run(self, request: ExecRequest, on_started: Callable[[], Awaitable[None]]) -> AgentEnd:
        """Start the agent and wait for its end."""
        stop = asyncio.create_task(self._interruption.wait(), name="agent-stop")
        starting = asyncio.create_task(self._sandbox.start_process(request), name="agent-start")
        try:
            await asyncio.wait(
                {starting, stop}, timeout=self._limits.agent_start_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not starting.done():
                await unwind(starting)
                detail = f"the agent was not started within {self._limits.agent_start_s:g} s"
                return AgentEnd(asked=self._interruption.cause, failure=Reason.TIMEOUT, failure_detail=detail)
            if isinstance(exc := starting.exception(), SandboxError):
                return await self._failed(exc, started=getattr(exc, "reason", None) is not Reason.GUEST)
            process = starting.result()
            await on_started()
            return await self._watch(process, request, stop)
        finally:
            await unwind(starting, stop)

    async def _watch(self, process: Process, request: ExecRequest, stop: asyncio.Task[StopCause]) -> AgentEnd:
        pump = asyncio.create_task(self._output.copy(process.stdout), name="agent-output")
        ended = asyncio.create_task(process.wait(), name="agent-wait")
        limit_s = (request.timeout_s or 0.0) + self._limits.agent_grace_s + self._limits.agent_margin_s
        watchdog = False
        try:
            await asyncio.wait({ended, stop}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and self._interruption.cause is StopCause.CANCEL_REQUESTED:
                await self._ask_to_end(process, ended)
            elif not ended.done() and self._interruption.cause is None:
                watchdog = True
                log.error("agent outlived its limit of %g s; killing its sandbox", limit_s)
            if not ended.done():
                await self._kill()
                await asyncio.wait({ended}, timeout=AFTER_KILL_S)
            else:
                await asyncio.wait({pump}, timeout=request.drain_s)
            return await self._end(ended, watchdog)
        finally:
            await unwind(ended, pump)

    async def _ask_to_end(self, process: Process, ended: asyncio.Task[ExecResult]) -> None:
        """Within the grace and a margin; at once if the lease ends meanwhile."""
        asking = asyncio.create_task(process.cancel(), name="agent-cancel")
        fenced = asyncio.create_task(self._interruption.wait_fenced(), name="agent-fenced")
        try:
            limit_s = self._limits.agent_grace_s + self._limits.agent_margin_s
            await asyncio.wait({ended, fenced}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await unwind(asking, fenced)

    async def _kill(self) -> None:
        try:
            async with asyncio.timeout(self._limits.destroy_s):
                await self._sandbox.kill()
        except (SandboxError, OSError, TimeoutError) as exc:
            log.error("sandbox %s cannot be killed: %s", self._sandbox.sandbox_id, exc, extra={"action": "kill_failed"})

    async def _end(self, ended: asyncio.Task[ExecResult], watchdog: bool) -> AgentEnd:
        asked = self._interruption.cause
        if not ended.done() or ended.cancelled():
            return AgentEnd(asked=asked, watchdog=watchdog, failure=Reason.TIMEOUT, failure_detail="no end was seen")
        exc = ended.exception()
        if exc is None:
            return AgentEnd(result=ended.result(), asked=asked, watchdog=watchdog)
        if not isinstance(exc, SandboxError):
            raise exc
        return await self._failed(exc, watchdog=watchdog)

    async def _failed(self, exc: SandboxError, *, started: bool = True, watchdog: bool = False) -> AgentEnd:
        reason = exc.reason if isinstance(exc, SandboxOperationError) else Reason.STATE
        detail = str(exc)
        if reason is Reason.CRASHED:
            with contextlib.suppress(TimeoutError, SandboxError):
                async with asyncio.timeout(CRASH_TEXT_S):
                    detail = await self._sandbox.crashed()
        return AgentEnd(
            failure=reason,
            failure_detail=detail,
            started=started,
            asked=self._interruption.cause,
            watchdog=watchdog,
        )
