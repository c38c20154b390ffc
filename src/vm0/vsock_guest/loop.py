"""A small epoll loop: file descriptors, timers, and calls from other threads. One thread runs it."""

from __future__ import annotations

import heapq
import os
import select
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
MIN_TIMERS = 256  # below this the cancelled ones may wait for their time
LONGEST_POLL_S = 3600.0  # epoll counts milliseconds in 32 bits; a time limit of a month must not break the loop


class Timer:
    """A call that is due later; `cancel` is idempotent."""

    __slots__ = ("_due", "call")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self._due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self._due < other._due

    @property
    def due(self) -> float:
        return self._due


class Loop:
    """`watch` a descriptor, `later` a call, `submit` a call from any thread; `run` until told to stop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._compact_at = MIN_TIMERS
        self._submitted: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self.watch(self._wake, READ, self._awake)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events that are there (errors and hang-ups always). Replaces an earlier watch of `fd`."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Before closing `fd`; idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, call)
        if len(self._timers) > self._compact_at:  # long limits of short commands: most are cancelled long before
            self._timers = [other for other in self._timers if other.call is not None]
            heapq.heapify(self._timers)
            self._compact_at = max(MIN_TIMERS, 2 * len(self._timers))
        heapq.heappush(self._timers, timer)
        return timer

    def submit(self, call: Callable[[], None]) -> None:
        """Run `call` in the loop soon; the only method that other threads and signal handlers may use."""
        self._submitted.append(call)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping

    def run(self) -> None:
        """Until `stop`; callbacks may call anything here."""
        self._stopping = False
        while not self.stopping():
            ready = [(fd, events, self._callbacks.get(fd)) for fd, events in self._epoll.poll(self._next_due(), 64)]
            for fd, events, callback in ready:
                # An earlier callback of this round may have closed it, and the number may be somebody else's by now.
                if callback is not None and self._callbacks.get(fd) is callback:
                    callback(events)
                if self.stopping():
                    return
            self._run_submitted()
            self._run_timers()

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def _awake(self, _events: int) -> None:
        os.eventfd_read(self._wake)

    def _next_due(self) -> float:
        if self._submitted:
            return 0
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        return min(max(0.0, self._timers[0].due - time.monotonic()), LONGEST_POLL_S) if self._timers else -1

    def _run_submitted(self) -> None:
        for _ in range(len(self._submitted)):
            self._submitted.popleft()()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            call = heapq.heappop(self._timers).call
            if call is not None:
                call()
