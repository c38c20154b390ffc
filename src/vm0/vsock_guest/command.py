"""One command: started, fed, read under credit, watched by pidfd, ended with all it started, reported once.

    spawn ──▶ STARTED ──▶ exit noticed (pidfd) ──▶ streams drained or drain limit ──▶ RESULT
                │                  ▲
                └ time limit or cancel: SIGTERM to all ──▶ grace ──▶ SIGKILL to all

The exit of the command's own process decides, not the end of its output: a grandchild that keeps a pipe open delays the
result by the drain limit. Output for which the host has given no credit stays in the pipe and stops only its writer;
what is in there when the command ends is delivered in any case.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import termios
import time

from vm0.vsock_guest.containment import Containment
from vm0.vsock_guest.loop import READ
from vm0.vsock_guest.spawn import spawn
from vm0.vsock_guest.streams import InputPipe, OutputPipe
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.errors import wire_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm0.vsock_guest.identity import Identity
    from vm0.vsock_guest.loop import Loop, Timer
    from vm0.vsock_proto.codec import Message

TRACED_AGAIN_S = 0.05
DRAIN_AGAIN_S = 0.1  # how often streams that wait for credit after the drain limit are looked at


class Command:
    """`send` takes the operation's messages; `finished` is called once, after the final one, whatever happens."""

    def __init__(
        self,
        loop: Loop,
        request: m.Exec,
        containment: Containment,
        send: Callable[[Message], None],
        finished: Callable[[Command], None],
    ) -> None:
        self._loop, self._request, self.containment = loop, request, containment
        self._send, self._finished = send, finished
        self._outputs: dict[int, OutputPipe] = {}
        self._input: InputPipe | None = None
        self._terminal = -1
        self.pid = 0
        self._pidfd = -1
        self._stopped_as = -1  # TIMED_OUT or CANCELLED once we have decided to end it
        self._timers: list[Timer] = []
        self._started_at = time.monotonic()
        self._exit: tuple[int, object] | None = None  # wait status and resource usage
        self._drain_expired = False

    def start(self, identity: Identity) -> None:
        """Fork and exec; one *started* or, when that is impossible, one *result*."""
        request = self._request
        try:
            self._spawn(identity)
        except (OSError, ValueError) as exc:
            self._close_all()
            self._report_not_started(exc)
            return
        self._send(m.Started(self.pid))
        self._loop.watch(self._pidfd, READ, lambda _events: self._on_exit())
        if request.timeout_ms:
            self._timers.append(self._loop.later(request.timeout_ms / 1000, lambda: self._end(m.TIMED_OUT)))
        for pipe in self._outputs.values():
            pipe.start()
        if self._input is not None:
            self._input.start()

    def cancel(self) -> None:
        self._end(m.CANCELLED)

    def kill(self) -> None:
        """The host is gone: end it at once; nobody will read a result."""
        if self._stopped_as < 0 and self._exit is None:
            self._stopped_as = m.CANCELLED
        self.containment.kill()
        self._close_all()  # what waits in the pipes for credit must not hold the end back: there will be no credit
        self._timers.append(self._loop.later(0, self._on_stream_end))

    def signal(self, number: int) -> None:
        if self._exit is None and 0 < number < signal.NSIG:
            self.containment.signal(number)

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def credit(self, stream: int, amount: int) -> None:
        if stream in self._outputs:
            self._outputs[stream].grant(amount)

    def feed(self, message: m.Stdin) -> None:
        """Raises RemoteProtocolError when the host sends more than its window."""
        if self._input is not None and self._request.flags & m.STDIN_STREAM:
            self._input.feed(message.data, last=bool(message.flags & m.LAST))

    def _spawn(self, identity: Identity) -> None:
        request = self._request
        environment = identity.environment | dict(request.env)
        if request.flags & m.PTY:
            environment.setdefault("TERM", "xterm-256color")
        closing: list[int] = []
        try:
            child_fds = self._open_streams(closing)
            self.pid = spawn(
                ["/bin/sh", "-c", request.argv[0]] if request.flags & m.SHELL else request.argv,
                child_fds,
                cwd=request.cwd or _existing(identity.home),
                environment=environment,
                identity=identity,
                containment=self.containment,
                terminal=bool(request.flags & m.PTY),
            )
        finally:
            for fd in closing:
                os.close(fd)
        self.containment.joined(self.pid)
        self._pidfd = os.pidfd_open(self.pid)

    def _open_streams(self, closing: list[int]) -> tuple[int, int, int]:
        """The child's three descriptors; adds to `closing` what the parent closes after the fork, or if this fails."""
        request = self._request
        if request.flags & m.PTY:
            self._terminal, slave = os.openpty()
            closing.append(slave)
            self.resize(request.rows, request.columns)
            self._outputs[m.STDOUT] = self._output(m.STDOUT, os.dup(self._terminal), request.stdout_limit)
            self._input = self._input_pipe(os.dup(self._terminal))
            return slave, slave, slave
        if request.stdin or request.flags & m.STDIN_STREAM:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            closing.append(read_end)
            self._input = self._input_pipe(write_end)
        else:
            read_end = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            closing.append(read_end)
        ends: list[int] = []
        for stream, limit in ((m.STDOUT, request.stdout_limit), (m.STDERR, request.stderr_limit)):
            if stream == m.STDERR and request.flags & m.MERGE_STDERR:
                ends.append(ends[0])
                continue
            output_end, child_end = os.pipe2(os.O_CLOEXEC)
            closing.append(child_end)
            self._outputs[stream] = self._output(stream, output_end, limit)
            ends.append(child_end)
        return read_end, ends[0], ends[1]

    def _output(self, stream: int, fd: int, limit: int) -> OutputPipe:
        return OutputPipe(self._loop, fd, limit, lambda data: self._send(m.Output(stream, data)), self._on_stream_end)

    def _input_pipe(self, fd: int) -> InputPipe:
        request = self._request
        pipe = InputPipe(self._loop, fd, lambda amount: self._send(m.Credit(m.STDIN, amount)))
        if not request.flags & m.STDIN_STREAM:
            pipe.preload(request.stdin, hold_open=bool(request.flags & m.PTY))
        return pipe

    def _end(self, how: int) -> None:
        """Ask all of it to end, and after the grace make it. Only the first reason counts, and none after the exit."""
        if self._exit is not None or self._stopped_as >= 0:
            return
        self._stopped_as = how
        self.containment.signal(signal.SIGTERM)
        self.containment.signal(signal.SIGCONT)  # a stopped process acts on nothing else
        self._timers.append(self._loop.later(self._request.grace_ms / 1000, self.containment.kill))

    def _on_exit(self) -> None:
        if self._stopped_as >= 0:  # what it started goes with it, while its number is still ours
            self.containment.kill()
        self._loop.unwatch(self._pidfd)
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:  # somebody traces it and is told of its end before us: waiting would give them our loop
            self._loop.later(TRACED_AGAIN_S, self._on_exit)
            return
        os.close(self._pidfd)
        self._pidfd = -1
        self._exit = (status, usage)
        self.containment.reaped()
        for pipe in self._outputs.values():
            pipe.writer_ended()
        self._cancel_timers()
        self._timers.append(self._loop.later(self._request.drain_ms / 1000, self._on_drain_limit))
        self._on_stream_end()

    def _on_drain_limit(self) -> None:
        """Give up on streams that somebody else keeps open; what the command itself wrote waits for credit."""
        for pipe in self._outputs.values():
            if pipe.open and not pipe.due:
                self._drain_expired |= pipe.give_up()
        if any(pipe.open for pipe in self._outputs.values()):
            self._timers.append(self._loop.later(DRAIN_AGAIN_S, self._on_drain_limit))
        self._on_stream_end()

    def _on_stream_end(self) -> None:
        if self._exit is None or any(pipe.open for pipe in self._outputs.values()):
            return
        self._report()

    def _report(self) -> None:
        assert self._exit is not None
        status, usage = self._exit
        code = os.waitstatus_to_exitcode(status)
        ended = self._stopped_as if self._stopped_as >= 0 else (m.EXITED if code >= 0 else m.SIGNALLED)
        totals = {stream: pipe.total for stream, pipe in self._outputs.items()}
        truncated = {stream for stream, pipe in self._outputs.items() if pipe.truncated}
        flags = (
            (m.STDOUT_TRUNCATED if m.STDOUT in truncated else 0)
            | (m.STDERR_TRUNCATED if m.STDERR in truncated else 0)
            | (m.DRAIN_EXPIRED if self._drain_expired else 0)
        )
        self._finish(
            m.Result(
                ended=ended,
                exit_code=code if code >= 0 else -1,
                signal=-code if code < 0 else 0,
                duration_us=self._elapsed_us(),
                user_cpu_us=int(usage.ru_utime * 1e6),  # type: ignore[attr-defined]  # resource.struct_rusage
                system_cpu_us=int(usage.ru_stime * 1e6),  # type: ignore[attr-defined]
                max_rss_kib=usage.ru_maxrss,  # type: ignore[attr-defined]
                stdout_total=totals.get(m.STDOUT, 0),
                stderr_total=totals.get(m.STDERR, 0),
                flags=flags,
                diagnostic="",
            )
        )

    def _report_not_started(self, exc: Exception) -> None:
        missing = isinstance(exc, OSError) and exc.errno in (errno.ENOENT, errno.ENOTDIR)
        self._finish(
            m.Result(
                ended=m.COULD_NOT_START,
                exit_code=127 if missing else 126,  # as shells do
                signal=0,
                duration_us=self._elapsed_us(),
                user_cpu_us=0,
                system_cpu_us=0,
                max_rss_kib=0,
                stdout_total=0,
                stderr_total=0,
                flags=0,
                diagnostic=wire_text(str(exc)),
            )
        )

    def _finish(self, result: m.Result) -> None:
        self._cancel_timers()
        self._close_all()
        self._send(result)
        self._finished(self)

    def _elapsed_us(self) -> int:
        return int((time.monotonic() - self._started_at) * 1e6)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _close_all(self) -> None:
        for pipe in self._outputs.values():
            pipe.close()
        if self._input is not None:
            self._input.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1


def _existing(directory: str) -> str:
    return directory if os.path.isdir(directory) else "/"
