"""One run from its payload to its outcome: the story of guest-agent, told by the main thread.

1. Take the payload, build the masker: before that nothing may leave the guest.
2. Enter the working directory and start the CLI, then the threads that talk to the API: the CLI waits for nobody.
3. Supervise it to its end.
4. Store the checkpoint while the last events are delivered.
5. Send the last telemetry, give up what the API did not take, say how it all ended.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time

from vm0.guest_agent import cli, outcome, payload, session, supervisor
from vm0.guest_agent.events import EventQueue
from vm0.guest_agent.inbox import DONE, Inbox
from vm0.guest_agent.process import AgentProcess, StartError
from vm0.guest_agent.timings import Timings
from vm0.guest_agent.transcript import VOCABULARY, Transcript
from vm0.guest_common.clock import elapsed_ms
from vm0.guest_common.log import describe
from vm0.guest_common.masking import Masker, MaskingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_agent.reporting import Reporting
    from vm0.guest_common.environment import Environment
    from vm0.guest_common.log import Log
    from vm0.guest_common.operations import Operations

AGENT_LOG_NAME = "agent.log"
SCRIPT_NAME = "command.sh"
CHECKPOINT_THREAD = "checkpoint"
STDOUT_FD = 1
STDOUT_WAIT_S = 5.0
SHELLS = ("/bin/bash", "/bin/sh")


class AgentRun:
    """Used once. `event_count` is how many events there were, sent or not."""

    def __init__(
        self, environment: Environment, log: Log, operations: Operations, messages: Inbox, timings: Timings
    ) -> None:
        self._environment, self._log, self._operations = environment, log, operations
        self._messages, self._timings = messages, timings
        self._started_s = time.monotonic()
        self._queue = EventQueue(environment.runtime_dir, keep=not environment.local)
        self._reporting: Reporting | None = None

    @property
    def event_count(self) -> int:
        return self._queue.event_count

    def execute(self) -> outcome.Outcome:
        """Never raises for anything that the run, the CLI or the API does."""
        environment = self._environment
        if environment.api_start_time_ms is not None:
            since_ms = time.time() * 1000 - environment.api_start_time_ms
            self._operations.record("api_to_agent_start", since_ms, True)
        for name in environment.invalid:
            self._log.warn(f"{name} is malformed; using the default")
        try:
            given = payload.take(environment.payload_file)
            masker = self._masker(given)
        except (payload.PayloadError, MaskingError) as exc:
            return self._logged(outcome.failure("payload_invalid", str(exc)))
        try:
            if not environment.local:
                self._reporting = self._make_reporting(masker)
        except ValueError as exc:
            return self._logged(outcome.failure("api_url_invalid", f"VM0_API_URL: {exc}"))
        try:
            ending = self._logged(self._work(given, masker))
        finally:
            if self._reporting is not None:
                limit_s = self._timings.telemetry_drain_s
                if self._messages.stop is not None:
                    limit_s = min(limit_s, self._timings.terminated_flush_s / 2)
                self._reporting.finish(limit_s)
        return ending

    def _masker(self, given: payload.Payload) -> Masker:
        from vm0.guest_agent.telemetry import RECORD_WORDS

        masker = Masker(given.secret_values, VOCABULARY | RECORD_WORDS)
        self._log.mask = self._operations.mask = masker.mask_text
        if masker.skipped:
            self._log.warn(f"{masker.skipped} secret value(s) are shorter than 5 bytes and are not masked")
        return masker

    def _make_reporting(self, masker: Masker) -> Reporting:
        from vm0.guest_agent.reporting import Reporting

        return Reporting(
            self._environment, masker, self._queue, self._messages, self._log, self._operations, self._timings
        )

    def _work(self, given: payload.Payload, masker: Masker) -> outcome.Outcome:
        environment = self._environment
        try:
            with self._operations.timed("working_dir_setup"):
                working_dir = enter_working_dir(environment.working_dir)
        except (OSError, ValueError) as exc:
            return outcome.failure("working_dir", f"{environment.working_dir!r}: {describe(exc)}")
        try:
            command = self._plan_command(given)
        except ValueError as exc:
            return outcome.failure("agent_type", str(exc))
        self._link_memory(command, working_dir)
        transcript = Transcript(
            command.kind,
            masker,
            self._queue,
            self._messages,
            self._log,
            self._operations,
            environment.runtime_file(AGENT_LOG_NAME),
            environment.api_start_time_ms,
        )
        self._operations.record("init_total", elapsed_ms(self._started_s), True)
        with self._operations.timed("cli_execution") as timing:
            try:
                ending = self._run_cli(command, transcript)
            except StartError as exc:
                timing.failed(exc.outcome.text())
                return exc.outcome
            if not ending.success:
                timing.failed(ending.text())
        transcript.finish_command(ending.process_exit_code)
        ending.detail = masker.mask_text(ending.detail)
        if transcript.result_text is not None:
            print_bounded(masker.mask_text(transcript.result_text))
        return self._settle(ending, self._session(transcript, command, working_dir))

    def _plan_command(self, given: payload.Payload) -> cli.CommandLine:
        environment = self._environment
        kind = environment.cli_agent_type
        variables = cli.plan_environment(environment.inherited, given, kind, is_root=os.geteuid() == 0)
        variables["PWD"] = environment.working_dir
        return cli.plan_command(
            kind,
            given,
            variables,
            resume_session_id=environment.resume_session_id,
            mock_command=environment.mock_claude_command,
            shell=next(shell for shell in SHELLS if shell == SHELLS[-1] or os.access(shell, os.X_OK)),
            script_path=environment.runtime_file(SCRIPT_NAME),
        )

    def _link_memory(self, command: cli.CommandLine, working_dir: str) -> None:
        memory = self._environment.memory
        if command.kind not in cli.CLAUDE_KINDS or memory is None or not memory.mount_path:
            return
        home = command.environment.get("HOME", self._environment.home)
        try:
            with self._operations.timed("memory_symlink_setup"):
                session.link_memory(home, working_dir, memory.mount_path)
        except OSError as exc:
            self._log.warn(f"the memory folder cannot be linked: {describe(exc)}")

    def _run_cli(self, command: cli.CommandLine, transcript: Transcript) -> outcome.Outcome:
        script_path = self._environment.runtime_file(SCRIPT_NAME)
        process = AgentProcess(command, script_path, transcript, self._messages, self._log)
        try:
            self._log.info(f"agent started: {command.kind}, pid {process.pid}")
            if self._reporting is not None:
                self._reporting.start()
            tool_timeout_s = self._environment.stuck_tool_timeout_s or self._timings.tool_timeout_s
            watch = supervisor.Supervisor(process, transcript, self._messages, self._log, self._timings, tool_timeout_s)
            ending = watch.run()
        finally:
            process.close()
        return supervisor.plan_outcome(ending, transcript.result_is_error, transcript.stderr_tail())

    def _session(self, transcript: Transcript, command: cli.CommandLine, working_dir: str) -> tuple[str, list[str]]:
        home = command.environment.get("HOME", self._environment.home)
        folders = [working_dir, self._environment.working_dir]
        return transcript.session_id, session.history_paths(home, folders, transcript.session_id)

    def _settle(self, ending: outcome.Outcome, found: tuple[str, list[str]]) -> outcome.Outcome:
        """Checkpoint and last events; what of them fails becomes part of the outcome."""
        reporting = self._reporting
        if reporting is None:
            return ending
        self._queue.close()
        if self._messages.stop is None:
            ending = self._checkpointed(ending, reporting, found)
        reporting.deliver_events(self._timings.event_drain_s)
        missing, dropped = reporting.sender.missing, self._queue.dropped
        if missing or dropped:
            lost = f"{missing + dropped} of {self.event_count} events did not reach the API"
            self._log.error(lost)
            ending.reason = ending.reason or ("events_overflow" if dropped else "events_undelivered")
            ending.detail = f"{ending.detail}; {lost}" if ending.detail else lost
        return ending

    def _checkpointed(
        self, ending: outcome.Outcome, reporting: Reporting, found: tuple[str, list[str]]
    ) -> outcome.Outcome:
        """A run that succeeded needs its checkpoint; of one that failed it saves the work that was done."""
        from vm0.guest_agent.checkpoint import CheckpointError, CheckpointMaker, Session

        abandoned = threading.Event()
        client = reporting.new_client(abandoned)
        maker = CheckpointMaker(client, self._environment, self._log, self._operations)
        problems: list[str] = []

        def make() -> None:
            try:
                self._log.info(f"checkpoint stored: {maker.make(Session(*found))}")
            except CheckpointError as exc:
                problems.append(str(exc))
            except Exception as exc:  # a bug must not look like a stored checkpoint
                problems.append(f"internal error: {exc!r}")
            finally:
                self._messages.post(DONE, CHECKPOINT_THREAD)

        threading.Thread(target=make, name=CHECKPOINT_THREAD, daemon=True).start()
        done = self._messages.wait_done(CHECKPOINT_THREAD, self._timings.checkpoint_s)
        # The first cause counts: a request to stop makes the thread fail, which must not look like the reason.
        stop, stored = self._messages.stop, done and not problems
        abandoned.set()
        client.close()
        if stored:
            return ending
        if stop is not None:
            reason, detail = stop.reason, f"{stop.detail}, while the checkpoint was being stored"
        elif done:
            reason, detail = "checkpoint_failed", problems[0]
        else:
            reason, detail = "checkpoint_failed", f"not stored within {self._timings.checkpoint_s:g} s"
        if not ending.success:
            self._log.warn(f"no checkpoint of this failed run: {detail}")
            return ending
        code = outcome.TERMINATED if reason == supervisor.TERMINATED_REASON else outcome.FAILURE
        return outcome.failure(reason, detail, code)

    def _logged(self, ending: outcome.Outcome) -> outcome.Outcome:
        seconds = time.monotonic() - self._started_s
        write = self._log.info if ending.success else self._log.error
        write(f"run ended after {seconds:.1f} s: {ending.text()}")
        return ending


def enter_working_dir(path: str) -> str:
    """Make it and go there; its real path. Raises OSError or ValueError."""
    if not path.startswith("/"):
        raise ValueError("VM0_WORKING_DIR must be an absolute path")
    os.makedirs(path, exist_ok=True)
    os.chdir(path)
    return os.getcwd()


def print_bounded(text: str) -> None:
    """The agent's result on our stdout. A reader that does not read gets a part of it: it must not hold up the run."""
    data = memoryview(text.encode("utf-8", "replace") + b"\n")
    poll = select.poll()
    poll.register(STDOUT_FD, select.POLLOUT)
    try:
        while data and poll.poll(STDOUT_WAIT_S * 1000):
            data = data[os.write(STDOUT_FD, data[: select.PIPE_BUF]) :]
    except OSError:
        return


def install_signals(messages: Inbox) -> None:
    """Turn every request of the runner to end into a message to the main thread."""

    def request(number: int, frame: object) -> None:
        messages.request_stop(supervisor.TERMINATED_REASON, f"guest-agent received {outcome.signal_name(number)}")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, request)
