"""The runner as a whole: starts its parts in order, executes what discovery claims, and ends in steps.

Stop ladder: `drain()` claims nothing more and lets the runs finish; `cancel()` ends the runs as well and reports them.
The first SIGTERM or interrupt drains, the second cancels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import uuid
from collections.abc import AsyncIterator

from vm0.contracts.runner import RunnerHeartbeat
from vm0.contracts.runs import Isolation
from vm0.runner.backends import make_factory
from vm0.runner.bridge import Bridge
from vm0.runner.cancellations import CancellationListener
from vm0.runner.claims import Claim, Discovery, Slots
from vm0.runner.clock import BootClock
from vm0.runner.completion import Reporter
from vm0.runner.config import RunnerConfig
from vm0.runner.control_plane import ControlPlane, HttpControlPlane
from vm0.runner.errors import RunnerError
from vm0.runner.executor import Execution, ExecutorHost
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.leases import RunnerIdentity
from vm0.runner.phases import unwind
from vm0.runner.recovery import recover
from vm0.runner.state_directory import StateDirectory
from vm0.runner.status import StatusFile
from vm0.sandbox import IsolationTier, SandboxFactory

log = logging.getLogger(__name__)

CANCEL_LIMIT_S = 120.0  # for the runs of a cancelled runner to be reported and destroyed


class Runner:
    """One runner; `run()` once. It owns the factory from the moment `run()` enters it."""

    def __init__(
        self, config: RunnerConfig, factory: SandboxFactory, *, control_plane: ControlPlane | None = None
    ) -> None:
        self._config, self._factory = config, factory
        self._given_control_plane = control_plane
        self._state = StateDirectory(config.state_dir)
        self._status = StatusFile(self._state.status_file, config.max_concurrent)
        self._slots = Slots(config.max_concurrent)
        self._executions: dict[asyncio.Task[None], Interruption] = {}
        self._host: ExecutorHost | None = None
        self._cancellations: CancellationListener | None = None
        self._discovery: Discovery | None = None
        self._draining = self._cancelling = False
        self._nudge = asyncio.Event()  # the heartbeat has something new to say
        self.ready = asyncio.Event()

    @property
    def isolation(self) -> IsolationTier:
        """What stands between agents and this host."""
        return self._factory.isolation

    @property
    def running_count(self) -> int:
        return len(self._executions)

    def drain(self) -> None:
        """Claim nothing more, finish what runs. Idempotent."""
        self._draining = True
        if self._discovery is not None:
            self._discovery.stop()
            self._status.set_mode("draining")
        self._nudge.set()

    def cancel(self) -> None:
        """Drain, and end what runs now. Idempotent."""
        self._cancelling = True
        self.drain()
        for interruption in self._executions.values():
            interruption.request(StopCause.RUNNER_STOPPED)

    def stop(self) -> None:
        """One step down the ladder: the first call drains, the second cancels."""
        if self._draining:
            self.cancel()
        else:
            self.drain()

    async def run(self) -> None:
        """Until drained. Raises StateDirectoryInUse, BackendUnavailable; cancelling it ends the runs first."""
        with self._state.owned():
            try:
                async with contextlib.AsyncExitStack() as stack:
                    host = await self._started(stack)
                    await recover(
                        self._state.spool,
                        host.reporter,
                        runner_id=host.identity.runner_id,
                        isolation=host.isolation,
                    )
                    try:
                        await self._work(host)
                    finally:
                        left = await host.reporter.settle(self._config.shutdown_report_s)
                        if left:
                            extra = {"action": "reports_left"}
                            log.warning("%d reports are left for the next start of this runner", left, extra=extra)
            finally:
                self._status.set_mode("stopped")

    async def _started(self, stack: contextlib.AsyncExitStack) -> ExecutorHost:
        config = self._config
        self._status.set_mode("starting")
        await asyncio.to_thread(self._state.prune_logs, config.kept_logs)
        factory = await stack.enter_async_context(self._factory)
        control_plane = self._given_control_plane
        if control_plane is None:
            control_plane = await stack.enter_async_context(HttpControlPlane(config.server_url, config.token))
        identity = RunnerIdentity(runner_id=self._state.runner_id(), boot_id=str(uuid.uuid4()), name=config.name)
        clock = BootClock()
        isolation = Isolation(factory.isolation.value)
        self._host = ExecutorHost(
            config=config,
            identity=identity,
            factory=factory,
            control_plane=control_plane,
            bridge=await stack.enter_async_context(Bridge(config.server_url)),
            reporter=Reporter(
                control_plane,
                self._state.spool,
                failpoints=config.failpoints,
                clock=clock,
                retry_min_s=config.poll_retry_min_s,
            ),
            state=self._state,
            status=self._status,
            clock=clock,
        )
        self._cancellations = CancellationListener(control_plane, identity.runner_id)
        self._discovery = Discovery(
            control_plane,
            identity,
            group=config.group,
            isolation=isolation,
            slots=self._slots,
            start=self._start,
            poll_wait_s=config.poll_wait_s,
            retry_min_s=config.poll_retry_min_s,
            retry_max_s=config.poll_retry_max_s,
            failpoints=config.failpoints,
            clock=clock,
        )
        log.info(
            "runner %s of group %s: backend %s, isolation %s, at most %d runs",
            identity.name,
            config.group,
            factory.backend,
            isolation.value,
            config.max_concurrent,
            extra={"action": "runner_started", "runner_id": identity.runner_id, **factory.describe()},
        )
        return self._host

    async def _work(self, host: ExecutorHost) -> None:
        if self._discovery is None or self._cancellations is None:
            raise RunnerError("the runner was not started")
        discovery = asyncio.create_task(self._discovery.run(), name="discovery")
        heartbeats = asyncio.create_task(self._heartbeats(host), name="heartbeats")
        status = asyncio.create_task(self._status.keep(), name="status")
        cancellations = asyncio.create_task(self._cancellations.run(), name="cancellations")
        self._status.set_mode("running")
        if self._draining:  # told to stop while it was starting
            self.drain()
        self.ready.set()
        try:
            await discovery
            while self._executions:
                await asyncio.wait(self._executions)
        finally:
            self.cancel()
            if self._executions:
                await asyncio.wait(self._executions, timeout=CANCEL_LIMIT_S)
            await unwind(discovery, heartbeats, status, cancellations, *self._executions)

    def _start(self, claim: Claim) -> None:
        """Take over a claimed run and its slot."""
        interruption = Interruption()
        task = asyncio.create_task(self._execute(claim, interruption), name=f"run-{claim.context.run_id}")
        self._executions[task] = interruption
        task.add_done_callback(self._executed)
        # Looked at after the run is registered: a stop in between would otherwise miss it.
        if self._draining:
            interruption.request(StopCause.RUNNER_STOPPED)

    async def _execute(self, claim: Claim, interruption: Interruption) -> None:
        if self._host is None or self._discovery is None or self._cancellations is None:
            raise RunnerError("the runner was not started")
        self._cancellations.watch(claim.context.run_id, interruption)
        execution = Execution(self._host, claim, interruption)
        try:
            await execution.execute()
        finally:
            self._discovery.note_start(execution.agent_tried or interruption.cause is not None)
            self._cancellations.unwatch(claim.context.run_id, interruption)
            self._status.remove(execution.sandbox_id)

    def _executed(self, task: asyncio.Task[None]) -> None:
        self._executions.pop(task, None)
        self._slots.release()
        self._nudge.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("execution %s failed: %r", task.get_name(), exc, exc_info=exc, extra={"action": "executor_bug"})

    async def _heartbeats(self, host: ExecutorHost) -> None:
        """Tell the server what this runner is and does; it is for display, so a failure is only logged once."""
        failed = False
        while True:
            beat = RunnerHeartbeat(
                runner_id=host.identity.runner_id,
                runner_name=host.identity.name,
                group=self._config.group,
                isolation=host.isolation,
                backend=host.factory.backend,
                max_concurrent=self._config.max_concurrent,
                running_count=len(self._executions),
                mode="draining" if self._draining else "running",
            )
            try:
                await host.control_plane.heartbeat(beat)
                failed = False
            except RunnerError as exc:
                log.log(logging.DEBUG if failed else logging.WARNING, "%s", exc, extra={"action": "heartbeat_failed"})
                failed = True
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._state.prune_logs, self._config.kept_logs)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.heartbeat_s):
                    await self._changed_mode()

    async def _changed_mode(self) -> None:
        """Until the mode differs from what the last heartbeat said; run counts wait for the next one."""
        before = self._draining
        while self._draining is before:
            self._nudge.clear()
            await self._nudge.wait()


@contextlib.asynccontextmanager
async def running_runner(
    config: RunnerConfig, factory: SandboxFactory | None = None, *, control_plane: ControlPlane | None = None
) -> AsyncIterator[Runner]:
    """A runner in this process, ready to claim. Leaving drains it; leaving by an exception cancels its runs.

    Raises StateDirectoryInUse and BackendUnavailable before the body runs.
    """
    runner = Runner(config, factory or make_factory(config), control_plane=control_plane)
    task = asyncio.create_task(runner.run(), name="runner")
    ready = asyncio.create_task(runner.ready.wait(), name="runner-ready")
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            yield runner
            runner.drain()
        await asyncio.shield(task)
    except BaseException:
        runner.cancel()
        if not task.done():
            await asyncio.wait({task}, timeout=CANCEL_LIMIT_S)
        raise
    finally:
        await unwind(ready, task)


async def serve(config: RunnerConfig, factory: SandboxFactory | None = None) -> None:
    """Run until SIGTERM or an interrupt, as a program of its own."""
    runner = Runner(config, factory or make_factory(config))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.stop)
    try:
        await runner.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
