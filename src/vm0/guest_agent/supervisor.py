"""The main thread while the CLI runs: waits for messages, takes the steps that `watchdog` plans, says how it ended."""

from __future__ import annotations

import signal
import time

from vm0.guest_agent import inbox, outcome, watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_agent.process import AgentProcess
    from vm0.guest_agent.timings import Timings
    from vm0.guest_agent.transcript import Transcript
    from vm0.guest_common.log import Log

LONGEST_WAIT_S = 3600.0
TERMINATED_REASON = "terminated"


class Ending:
    """What was observed of the CLI's end; neither code nor signal: nothing was."""

    __slots__ = ("exit_code", "signal", "stop_cause", "stop_detail", "stop_reason")

    def __init__(
        self,
        exit_code: int | None = None,
        signal: int | None = None,
        *,
        stop_cause: str | None = None,
        stop_reason: str = "",
        stop_detail: str = "",
    ) -> None:
        self.exit_code, self.signal = exit_code, signal
        self.stop_cause = stop_cause  # one of watchdog's causes if we stopped it
        self.stop_reason, self.stop_detail = stop_reason, stop_detail


class Supervisor:
    """Supervises one process from its start to its end."""

    def __init__(
        self,
        process: AgentProcess,
        transcript: Transcript,
        messages: inbox.Inbox,
        log: Log,
        timings: Timings,
        tool_timeout_s: float,
    ) -> None:
        self._process, self._transcript, self._messages = process, transcript, messages
        self._log, self._timings, self._tool_timeout_s = log, timings, tool_timeout_s
        self._at = watchdog.Situation()
        self._ending = Ending()

    def run(self) -> Ending:
        """Returns when the CLI has ended and its output is read, or every means to end it has failed."""
        at = self._at
        at.stop_requested = self._messages.stop is not None
        while True:
            now = time.monotonic()
            self._refresh()
            step = watchdog.plan_step(at, now, self._timings)
            if step.action in (watchdog.FINISH, watchdog.GIVE_UP):
                if step.action == watchdog.FINISH and not at.streams_ended:
                    self._log.warn("a process that the agent left behind holds its output open; not waiting for it")
                return self._ending
            if step.action == watchdog.TERMINATE:
                at.term_at, at.stop_cause = now, step.cause
                self._explain(step.cause)
                self._process.signal_group(signal.SIGTERM)
            elif step.action == watchdog.KILL:
                at.kill_at = now
                self._log.warn(f"agent still runs {self._timings.stop_grace_s:g} s after SIGTERM; sending SIGKILL")
                self._ending.stop_detail += "; it ignored SIGTERM and was killed"
                self._process.signal_group(signal.SIGKILL)
            else:
                wait_s = LONGEST_WAIT_S if step.until is None else step.until - now
                self._note(self._messages.get(min(wait_s, LONGEST_WAIT_S)))

    def _refresh(self) -> None:
        at = self._at
        at.last_event_at = self._transcript.last_event_at
        tool = self._transcript.tools.oldest()
        at.tool_deadline = None if tool is None else tool[1] + self._tool_timeout_s

    def _note(self, message: tuple[str, object] | None) -> None:
        if message is None:
            return
        kind, value = message
        at = self._at
        if kind == inbox.EXITED and isinstance(value, tuple):
            at.exited_at = time.monotonic()
            self._ending.exit_code, self._ending.signal = value
            if at.term_at is not None:
                self._process.signal_group(signal.SIGKILL)  # the rest of the group gets no second grace
        elif kind == inbox.STREAMS_ENDED:
            at.streams_ended = True  # it may go on without output: its exit counts
        elif kind == inbox.RESULT and at.result_at is None:
            at.result_at = time.monotonic()
        elif kind == inbox.STOP:
            at.stop_requested = True

    def _explain(self, cause: str) -> None:
        ending, stop = self._ending, self._messages.stop
        ending.stop_cause = cause
        if cause == watchdog.REQUESTED and stop is not None:
            ending.stop_reason, ending.stop_detail = stop.reason, stop.detail
        elif cause == watchdog.STUCK_TOOL:
            name, _ = self._transcript.tools.oldest() or ("a tool", 0.0)
            ending.stop_reason = watchdog.STUCK_TOOL
            ending.stop_detail = f"{name} did not return within {self._tool_timeout_s:g} s"
        else:
            ending.stop_reason = watchdog.AFTER_RESULT
            ending.stop_detail = "the agent printed its result and did not exit"
        self._log.warn(f"stopping the agent with SIGTERM: {ending.stop_reason}: {ending.stop_detail}")


def plan_outcome(ending: Ending, result_is_error: bool | None, stderr_tail: str) -> outcome.Outcome:
    """What is reported: our own reason if we stopped it, its result if it had one, otherwise how it ended."""
    if ending.stop_cause == watchdog.AFTER_RESULT:
        code = outcome.FAILURE if result_is_error else 0
        return outcome.failure(ending.stop_reason, ending.stop_detail, code)
    if ending.stop_cause is not None:
        code = outcome.TERMINATED if ending.stop_reason == TERMINATED_REASON else outcome.FAILURE
        return outcome.failure(ending.stop_reason, ending.stop_detail, code)
    if ending.signal is not None:
        detail = f"killed by {outcome.signal_name(ending.signal)}, not by guest-agent"
        detail += " (out of memory?)" if ending.signal == signal.SIGKILL else ""
        detail += f"\n{stderr_tail}" if stderr_tail else ""
        return outcome.Outcome(outcome.SIGNALLED, signal=ending.signal, detail=detail)
    if ending.exit_code is None:
        return outcome.Outcome(outcome.UNKNOWN, reason="agent_unkillable", detail="it survived SIGKILL")
    return outcome.Outcome(outcome.EXITED, exit_code=ending.exit_code, detail=stderr_tail if ending.exit_code else "")
