"""The CLI as a process: its own group, two threads that read its pipes, one that waits for its exit.

Exit and end of output are separate facts: a grandchild may hold the pipes long after the CLI is gone, and a CLI may
close them and go on working. The process is not reaped before the end, so its group id stays ours to signal.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading

from vm0.guest_agent import inbox, outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_agent.cli import CommandLine
    from vm0.guest_agent.transcript import Transcript
    from vm0.guest_common.log import Log

READ_BYTES = 256 * 1024
READER_JOIN_S = 5.0


class StartError(Exception):
    """the agent cannot be started; `outcome` says how that is reported"""

    def __init__(self, ending: outcome.Outcome) -> None:
        super().__init__(ending.text())
        self.outcome = ending


class AgentProcess:
    """Started by the constructor, which raises StartError; `close` must be called."""

    def __init__(
        self, command: CommandLine, script_path: str, transcript: Transcript, messages: inbox.Inbox, log: Log
    ) -> None:
        self._transcript = transcript
        self._messages = messages
        self._log = log
        self._script_path = script_path if command.script is not None else ""
        self._popen = _start(command, self._script_path)
        self.pid = self._popen.pid
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._open_streams = 2
        self._lock = threading.Lock()
        self._readers = [
            self._thread(f"agent-{name}", self._read, name, pipe)
            for name, pipe in (("stdout", self._popen.stdout), ("stderr", self._popen.stderr))
            if pipe is not None
        ]
        self._waiter = self._thread("agent-exit", self._wait)

    def signal_group(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it is gone, or is somebody else by its own choice

    def close(self) -> None:
        """Kill what is left of the group, stop reading, reap. Bounded, idempotent."""
        if self._popen.returncode is None:
            self.signal_group(signal.SIGKILL)
        if self._wake_write >= 0:
            os.close(self._wake_write)  # readers see it as the end of their wake pipe
            self._wake_write = -1
        for reader in self._readers:
            reader.join(READER_JOIN_S)
        try:
            self._popen.wait(READER_JOIN_S)
        except subprocess.TimeoutExpired:
            self._log.error(f"agent process {self.pid} cannot be killed")
        if not any(reader.is_alive() for reader in self._readers):
            for pipe in (self._popen.stdout, self._popen.stderr):
                if pipe is not None:
                    pipe.close()
            if self._wake_read >= 0:
                os.close(self._wake_read)
                self._wake_read = -1
        if self._script_path and os.path.exists(self._script_path):
            os.unlink(self._script_path)

    def _thread(self, name: str, target: object, *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread

    def _wait(self) -> None:
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return  # `close` reaped it first: nobody waits for the message any more
        if ended is not None:
            by_itself = ended.si_code == os.CLD_EXITED
            self._messages.post(inbox.EXITED, (ended.si_status, None) if by_itself else (None, ended.si_status))

    def _read(self, name: str, pipe: object) -> None:
        try:
            self._read_chunks(name, pipe.fileno())  # type: ignore[attr-defined]
            self._transcript.finish(name)
        except Exception as exc:  # without a reader the CLI would block, and what it said would be lost
            self._messages.request_stop("internal_error", f"reading the agent's {name} failed: {exc!r}")
        with self._lock:
            self._open_streams -= 1
            last = self._open_streams == 0
        if last:
            self._messages.post(inbox.STREAMS_ENDED)

    def _read_chunks(self, name: str, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while self._wake_read not in (ready := dict(poll.poll())):
            if fd in ready:
                chunk = os.read(fd, READ_BYTES)
                if not chunk:
                    return
                self._transcript.feed(name, chunk)


def _start(command: CommandLine, script_path: str) -> subprocess.Popen[bytes]:
    stdin = subprocess.DEVNULL
    try:
        if command.script is not None:
            _write_private(script_path, command.script)
        if command.stdin is not None:
            stdin = os.memfd_create("prompt")
            with open(os.dup(stdin), "wb") as file:
                file.write(command.stdin.encode())
            os.lseek(stdin, 0, os.SEEK_SET)
        return subprocess.Popen(
            command.argv,
            env=command.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
    except OSError as exc:
        raise StartError(_start_failure(command.argv[0], exc)) from None
    finally:
        if stdin >= 0:
            os.close(stdin)


def _start_failure(program: str, error: OSError) -> outcome.Outcome:
    detail = f"{program}: {error.strerror}"
    if error.errno == errno.ENOENT:
        detail = f"{program} is not installed in the sandbox, or not on PATH"
        return outcome.failure("agent_not_found", detail, outcome.NOT_FOUND)
    if error.errno in (errno.EACCES, errno.ENOEXEC):
        return outcome.failure("agent_not_executable", detail, outcome.NOT_EXECUTABLE)
    if error.errno == errno.E2BIG:
        detail += " (environment and options together are limited to about 2 MiB)"
    return outcome.failure("spawn_failed", detail)


def _write_private(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
