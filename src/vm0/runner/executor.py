"""The life of one run, from its claim until nothing of it is left on this host. `Execution._live` is the story."""

from __future__ import annotations

import asyncio
import io
import logging
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from vm0.contracts import names
from vm0.contracts.runner import ReleaseRequest
from vm0.contracts.runs import Isolation, Outcome, OutcomeKind
from vm0.contracts.webhooks import CompleteRequest
from vm0.runner import guest_environment as guest
from vm0.runner.agent import AgentSupervisor
from vm0.runner.bridge import Bridge, BridgeHandle
from vm0.runner.claims import Claim
from vm0.runner.clock import Clock
from vm0.runner.completion import Reporter, completed, released
from vm0.runner.config import RunnerConfig
from vm0.runner.control_plane import ControlPlane
from vm0.runner.host_logs import BoundedLog
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.leases import LeaseKeeper, RunnerIdentity
from vm0.runner.outcomes import MAX_REPORT_BYTES, AgentEnd, GuestReport, guest_report, observed_outcome
from vm0.runner.phases import Interrupted, PhaseFailed, Phases, Timeline, unwind
from vm0.runner.redaction import Redactor
from vm0.runner.spool import JournalRecord, JournalState
from vm0.runner.state_directory import StateDirectory
from vm0.runner.status import StatusFile
from vm0.sandbox import Ended, ExecRequest, Sandbox, SandboxConfig, SandboxFactory, State

log = logging.getLogger(__name__)

REPORT_PATIENCE_S = 300.0  # for a report the server does not take although it renews the lease
OUTPUT_TAIL_BYTES = 2048  # of a failed guest-download, for the timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorHost:
    """What every execution of this runner shares."""

    config: RunnerConfig
    identity: RunnerIdentity
    factory: SandboxFactory
    control_plane: ControlPlane
    bridge: Bridge
    reporter: Reporter
    state: StateDirectory
    status: StatusFile
    clock: Clock

    @property
    def isolation(self) -> Isolation:
        return Isolation(self.factory.isolation.value)


def sandbox_id(run_id: str, epoch: int) -> str:
    """Short, because it is part of socket paths; of this run and this attempt only."""
    return f"{run_id[:8]}-{run_id[-6:]}-{epoch}"


class Execution:
    """One claimed run. `execute` never raises for anything that goes wrong with the run."""

    def __init__(self, host: ExecutorHost, claim: Claim, interruption: Interruption) -> None:
        context = claim.context
        self._host, self._context, self._interruption = host, context, interruption
        self._fp, self._limits = host.config.failpoints, host.config.limits
        self.sandbox_id = sandbox_id(context.run_id, context.lease.epoch)
        self._redact = Redactor((*context.secret_values, context.sandbox_token))
        self._timeline = Timeline(context.attempt, self._redact, self._show_phase)
        self._phases = Phases(self._timeline, interruption)
        self._journal = host.state.spool.journal(context.run_id, context.lease.epoch)
        self._record = JournalRecord(run_id=context.run_id, epoch=context.lease.epoch, attempt=context.attempt)
        self._lease = LeaseKeeper(
            host.control_plane,
            host.identity,
            context.run_id,
            epoch=context.lease.epoch,
            ttl_s=context.lease.ttl_seconds,
            asked_at=claim.asked_at,
            interruption=interruption,
            timeline=self._timeline.steps,
            clock=host.clock,
        )
        self._sandbox: Sandbox | None = None
        self._link: BridgeHandle | None = None
        self.agent_tried = False  # the agent may have acted: from here on the run is reported, never given back
        self._extra = {"run_id": context.run_id, "sandbox_id": self.sandbox_id}

    async def execute(self) -> None:
        """Live, report, leave nothing behind. A report that cannot be delivered goes on in the background."""
        lease = asyncio.create_task(self._lease.keep(), name=f"keep-lease-{self._context.run_id}")
        delivery = None
        try:
            report = await self._ending()
            await self._silence()  # whoever learns that the run is over may rely on it
            if report is None:
                await asyncio.to_thread(self._journal.remove)
            else:
                delivery = await self._host.reporter.submit(report, self._journal)
                await asyncio.wait({delivery}, timeout=self._limits.report_s)
        finally:
            await self._silence()
            await self._destroy()
            await self._wait_for(delivery, lease)
            await unwind(lease)

    async def _wait_for(self, delivery: asyncio.Task[str] | None, lease: asyncio.Task[None]) -> None:
        """A report that is still under way is worth a renewed lease; not if the runner is told to end."""
        if delivery is None or delivery.done():
            return
        stop = asyncio.create_task(self._interruption.wait(), name="report-stop")
        try:
            await asyncio.wait({delivery, lease, stop}, timeout=REPORT_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await unwind(stop)

    async def _ending(self) -> JournalRecord | None:
        try:
            return await self._live()
        except Interrupted as exc:
            return self._not_started(exc.cause.value, f"during {exc.phase}", exc.cause)
        except PhaseFailed as exc:
            log.warning("run did not start: %s", exc, extra={"action": "start_failed", **self._extra})
            return self._not_started(f"not_started_{exc.phase}", exc.detail)
        except Exception as exc:
            log.exception("executing a run failed", extra={"action": "executor_bug", **self._extra})
            if not self.agent_tried:
                return self._not_started("internal_error", repr(exc))
            detail = self._redact(f"the runner failed: {exc!r}")
            return self._completed(Outcome(kind=OutcomeKind.UNKNOWN, reason="internal_error", detail=detail))

    async def _live(self) -> JournalRecord | None:
        """The story. Until the agent is started, whatever fails gives the run back."""
        run, limits, context, fp = self._phases.run, self._limits, self._context, self._fp
        await run("claim_journal", limits.payload_s, self._note(JournalState.CLAIMED))
        await fp("executor.claim_journaled")
        sandbox = await run("sandbox_create", limits.create_s, self._create())
        await fp("executor.sandbox_created")
        await run("sandbox_start", limits.start_s, sandbox.start())
        await fp("executor.sandbox_started")
        await run("bridge", limits.bridge_s, self._join_bridge(sandbox))
        await fp("executor.bridged")
        view = guest.GuestView(
            guest_path=sandbox.guest_path,
            api_url=sandbox.api_access.guest_url,
            mock_claude=sandbox.program("guest-mock-claude"),
        )
        if context.storage_manifest is not None:
            await run("storages", limits.storages_s, self._fill_storages(sandbox, view))
        await fp("executor.storages_done")
        if context.resume_session is not None:
            await run("session", limits.session_s, self._restore_session(sandbox, view))
        await fp("executor.session_done")
        await run("payload", limits.payload_s, self._write_payload(sandbox, view))
        await fp("executor.payload_written")
        await run("agent_mark", limits.payload_s, self._lease.mark_agent_started())
        await fp("executor.agent_marked")
        await run("agent_journal", limits.payload_s, self._note(JournalState.AGENT_STARTED))
        await fp("executor.agent_start_journaled")
        end = await self._run_agent(sandbox, view)
        await fp("executor.agent_ended")
        report = await self._after_agent(sandbox, view)
        await fp("executor.outcome_read")
        if self._interruption.cause is StopCause.LEASE_LOST:
            return None
        return self._completed(observed_outcome(end, report, self._redact), report)

    async def _note(self, state: JournalState) -> None:
        record = JournalRecord(
            run_id=self._record.run_id, epoch=self._record.epoch, attempt=self._record.attempt, state=state
        )
        await asyncio.to_thread(self._journal.write, record)

    async def _create(self) -> Sandbox:
        if not self._host.isolation.at_least(self._context.isolation):
            raise RuntimeError(f"the run demands {self._context.isolation.value}, this is {self._host.isolation.value}")
        config = self._host.config
        # Kept at once: a sandbox that comes after its time limit is destroyed like any other.
        self._sandbox = await self._host.factory.create(
            SandboxConfig(
                sandbox_id=self.sandbox_id,
                vcpus=config.sandbox_vcpus,
                memory_mib=config.sandbox_memory_mib,
                disk_mib=config.sandbox_disk_mib,
                labels={"run_id": self._context.run_id},
            )
        )
        return self._sandbox

    async def _join_bridge(self, sandbox: Sandbox) -> None:
        bridge, context = self._host.bridge, self._context
        self._link = await bridge.register(context.run_id, context.sandbox_token, sandbox.api_access)

    async def _fill_storages(self, sandbox: Sandbox, view: guest.GuestView) -> None:
        manifest = self._context.storage_manifest
        if manifest is None or not (manifest.storages or manifest.artifact or manifest.memory):
            return
        path = guest.runtime_file(view, self._context.run_id, guest.MANIFEST_NAME)
        await sandbox.write_file(path, guest.guest_manifest(manifest, view), private=True)
        result = await sandbox.exec(
            ExecRequest(
                argv=(*sandbox.program("guest-download"), path),
                env=guest.base_environment(self._context, view),
                timeout_s=self._limits.storages_s,
                merge_stderr=True,
            )
        )
        if result.ended is not Ended.EXITED or result.exit_code != 0:
            said = result.stdout.data[-OUTPUT_TAIL_BYTES:].decode("utf-8", "replace").strip() or result.diagnostic
            raise RuntimeError(f"guest-download {result.ended.value} with {result.shell_code}: {said}")

    async def _restore_session(self, sandbox: Sandbox, view: guest.GuestView) -> None:
        session = self._context.resume_session
        if session is None:
            return
        with tempfile.TemporaryFile(dir=self._host.state.transit) as history:
            digest = await self._host.control_plane.download(
                session.session_history_url, history, max_bytes=names.MAX_HISTORY_BYTES
            )
            if digest != session.session_history_hash:
                raise RuntimeError(f"the history has hash {digest}, not {session.session_history_hash}")
            history.seek(0)
            path = guest.session_file(self._context, session.session_id, view)
            await sandbox.write_file(path, history, mode=0o600)

    async def _write_payload(self, sandbox: Sandbox, view: guest.GuestView) -> None:
        path = guest.runtime_file(view, self._context.run_id, guest.PAYLOAD_NAME)
        await sandbox.write_file(path, guest.payload(self._context), private=True)

    async def _run_agent(self, sandbox: Sandbox, view: guest.GuestView) -> AgentEnd:
        self.agent_tried = True
        request = ExecRequest(
            argv=sandbox.program("guest-agent"),
            env=guest.agent_environment(self._context, view),
            timeout_s=float(self._context.timeout_seconds),
            grace_s=self._limits.agent_grace_s,
            stdout_limit=None,
            merge_stderr=True,
        )
        path = self._host.state.logs / f"system-{self._context.run_id}.log"
        with self._timeline.step("agent"), BoundedLog(path, self._host.config.log_limit_bytes) as output:
            supervisor = AgentSupervisor(sandbox, self._limits, self._interruption, output)
            end = await supervisor.run(request, lambda: self._fp("executor.agent_started"))
        if end.result is None or end.result.ended is not Ended.EXITED or end.result.exit_code != 0:
            seen = f"{end.result.ended.value} {end.result.shell_code}" if end.result else end.failure_detail
            self._timeline.note("agent", f"{end.asked.value}: {seen}" if end.asked else seen)
        return end

    async def _after_agent(self, sandbox: Sandbox, view: guest.GuestView) -> GuestReport | None:
        """What the guest left about the run; each part may be missing."""
        if sandbox.state is not State.RUNNING:
            return None
        report, run_id = None, self._context.run_id
        try:
            data = io.BytesIO()
            path = guest.runtime_file(view, run_id, guest.OUTCOME_NAME)
            reading = sandbox.read_file(path, data, limit=MAX_REPORT_BYTES)
            await self._phases.run("outcome", self._limits.outcome_s, reading, interruptible=False)
            report = guest_report(data.getvalue())
            collecting = self._collect_log(sandbox, guest.runtime_file(view, run_id, guest.SYSTEM_LOG_NAME))
            await self._phases.run("logs", self._limits.logs_s, collecting, interruptible=False)
        except PhaseFailed as exc:
            log.info("%s", exc, extra={"action": "guest_file_missing", **self._extra})
        return report

    async def _collect_log(self, sandbox: Sandbox, path: str) -> None:
        limit = self._host.config.log_limit_bytes
        found = await sandbox.stat(path)
        if found is None or found.size > limit:  # telemetry has sent it to the server; this is a copy for the host
            return
        copy = io.BytesIO()
        await sandbox.read_file(path, copy, limit=limit)
        with BoundedLog(self._host.state.logs / f"guest-{self._context.run_id}.log", limit) as out:
            out.append(copy.getvalue())

    def _completed(self, outcome: Outcome, report: GuestReport | None = None) -> JournalRecord:
        log.info(
            "run ended: %s %s", outcome.kind.value, outcome.reason or "", extra={"action": "run_ended", **self._extra}
        )
        return completed(
            self._record,
            CompleteRequest(
                run_id=self._context.run_id,
                exit_code=outcome.exit_code,
                outcome=outcome,
                epoch=self._lease.epoch,
                isolation=self._host.isolation,
                timeline=self._timeline.steps(),
                event_count=report.event_count if report else None,
            ),
        )

    def _not_started(self, reason: str, detail: str, cause: StopCause | None = None) -> JournalRecord | None:
        """The end of a run whose agent certainly did not start."""
        if cause is StopCause.LEASE_LOST:
            return None
        if cause is StopCause.CANCEL_REQUESTED:
            text = "cancelled before its agent started"
            return self._completed(Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled_before_start", detail=text))
        release = ReleaseRequest(
            runner_id=self._host.identity.runner_id,
            epoch=self._lease.epoch,
            reason=reason,
            detail=self._redact(detail),
            timeline=self._timeline.steps(),
        )
        return released(self._record, release)

    async def _silence(self) -> None:
        """Nothing of the run acts any more: no process, no way to the API."""
        if self._sandbox is not None:
            await self._undone("kill", self._sandbox.kill())
        if self._link is not None:
            await self._undone("bridge", self._host.bridge.unregister(self._link))

    async def _destroy(self) -> None:
        async def destroy(sandbox: Sandbox) -> None:
            await self._fp("executor.before_destroy")
            await self._host.factory.destroy(sandbox)
            await self._fp("executor.after_destroy")

        if self._sandbox is not None:
            await self._undone("destroy", destroy(self._sandbox))

    async def _undone(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Undo something, within its limit; a failure is logged and left to the reconciliation at the next start."""
        try:
            async with asyncio.timeout(self._limits.destroy_s):
                await work
        except Exception as exc:
            log.error("%s failed: %r", what, exc, extra={"action": f"{what}_failed", **self._extra})

    def _show_phase(self, phase: str) -> None:
        self._host.status.set_phase(self._context.run_id, self.sandbox_id, phase)
