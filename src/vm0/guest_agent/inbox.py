"""What the main thread waits for: one queue into which signal handlers and all other threads post.

The main thread never waits for anything else, so a request to stop is seen at once, whatever is going on.
"""

from __future__ import annotations

import queue
import time

EXITED = "exited"  # the CLI ended; value: (exit code or None, signal or None)
STREAMS_ENDED = "streams ended"  # both pipes of the CLI are at their end
RESULT = "result"  # the CLI printed its final result
TOOLS = "tools"  # the CLI started or finished a tool that is watched
STOP = "stop"  # value: StopRequest
DONE = "done"  # a worker thread ended; value: its name


class StopRequest:
    """Somebody wants the run to end. `reason` is a stable word, `detail` says who and why."""

    __slots__ = ("detail", "reason")

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail


class Inbox:
    """`post` from anywhere, also from a signal handler; everything else from the main thread only."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
        self._done: set[str] = set()
        self.stop: StopRequest | None = None  # the first one: later ones are its consequences

    def post(self, kind: str, value: object = None) -> None:
        self._queue.put((kind, value))

    def request_stop(self, reason: str, detail: str) -> None:
        self.post(STOP, StopRequest(reason, detail))

    def get(self, timeout_s: float) -> tuple[str, object] | None:
        """The next message, None after `timeout_s`."""
        try:
            kind, value = self._queue.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if kind == STOP and self.stop is None and isinstance(value, StopRequest):
            self.stop = value
        if kind == DONE:
            self._done.add(str(value))
        return kind, value

    def wait_done(self, name: str, timeout_s: float, *, until_stop: bool = True) -> bool:
        """Whether the worker ended in time; with `until_stop`, a request to stop ends the wait as well."""
        deadline = time.monotonic() + timeout_s
        while name not in self._done and not (until_stop and self.stop is not None):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            self.get(left_s)
        return name in self._done
