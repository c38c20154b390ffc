"""The life of PID 1: wait for signals, reap, keep the guest endpoint alive, end the machine.

PID 1 reaps whatever ends, so it must not be the process that waits for commands: that is PID 2's work, whose children
are its own. What loses its parent comes to PID 1 and is reaped here.

    endpoint runs ── exit 0 ─────────────────▶ stop ──▶ power off
        │  ▲   └──── SIGTERM, SIGINT, SIGPWR ──▶ stop
        ▼  │
      crashed ── once: end all it left, start again
        └─────── twice: stop, with the reason on the console
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGPWR})
SUPERVISED = STOPPING | {signal.SIGCHLD}
ENDPOINT_GRACE_S = 7.0  # it ends its commands itself, and gives up on them after 5
GRACE_S = 2.0  # for what is left between SIGTERM and SIGKILL
KILLED_S = 2.0  # for the kernel to end what was killed
STARTS = 2


class Supervisor:
    """`start` forks the endpoint and returns its pid; `left` clears what a crashed one left, all its processes being
    gone. The supervised signals must be blocked."""

    def __init__(self, start: Callable[[], int], left: Callable[[], None], say: Callable[[str], None]) -> None:
        self._start, self._left, self._say = start, left, say
        self._endpoint = 0

    def run(self) -> None:
        """Returns when the machine is to be switched off: nothing runs any more but what cannot be killed."""
        for remaining in reversed(range(STARTS)):
            self._endpoint = self._start()
            why = self._until_end()
            if not why:
                break
            self._say(f"guest endpoint died: {why}; {'starting it again' if remaining else 'powering off'}")
            if remaining:
                self._kill_all()
                self._left()
        self._stop()

    def _until_end(self) -> str:
        """How the endpoint crashed; "" when it ended as it should, or when we were told to stop."""
        while True:
            number = signal.sigwaitinfo(SUPERVISED).si_signo
            ended = reap()
            if self._endpoint in ended:
                return described(ended[self._endpoint])
            if number in STOPPING:
                self._say(f"stopping: {signal.Signals(number).name}")
                return ""

    def _stop(self) -> None:
        """SIGTERM to the endpoint, which ends its commands; then to everything; then SIGKILL."""
        if _send(self._endpoint, signal.SIGTERM):
            _until(lambda: not _is_child(self._endpoint), ENDPOINT_GRACE_S)
        if _send(-1, signal.SIGTERM):
            _send(-1, signal.SIGCONT)  # a stopped process acts on nothing else
            if not _until(_alone, GRACE_S):
                self._kill_all()

    def _kill_all(self) -> None:
        if _send(-1, signal.SIGKILL):
            _until(_alone, KILLED_S)


def reap() -> dict[int, int]:
    """Collect every child that has ended: pid to exit code, negative for a signal; never blocks. For PID 1 only."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def described(code: int) -> str:
    """ "" for a good end."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _until(done: Callable[[], bool], limit_s: float) -> bool:
    """Reap until `done()`; False when that takes longer."""
    deadline = time.monotonic() + limit_s
    while True:
        reap()
        if done():
            return True
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        signal.sigtimedwait({signal.SIGCHLD}, remaining)


def _alone() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _send(pid: int, number: int) -> bool:
    """False when there is nobody."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
