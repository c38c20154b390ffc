"""Delivers events: one thread, in order, many per POST. Every event is delivered, or counted as undelivered.

An API that is down or overloaded is tried again for as long as the run lasts: whether it is gone for good is the
heartbeat's decision. A batch that the API refuses is halved until the event it refuses stands alone.
"""

from __future__ import annotations

import threading

from vm0.guest_common.http import ApiClient, ApiError, HttpError, LeaseLostError, backoff_s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_agent.events import EventQueue
    from vm0.guest_agent.timings import Timings
    from vm0.guest_common.log import Log

EVENTS_PATH = "/api/webhooks/agent/events"
REFUSED_CONTENT = frozenset({400, 413, 422})
IDLE_S = 60.0  # how long one wait for events is; nothing happens when it ends
MAX_REFUSALS_LOGGED = 20


class EventSender:
    """`run` is the body of its thread; it ends when the queue is closed and empty, or when `abandon` is called."""

    def __init__(self, client: ApiClient, run_id: str, queue: EventQueue, log: Log, timings: Timings) -> None:
        self._client = client
        self._prefix = f'{{"runId":"{run_id}","events":['.encode()
        self._queue = queue
        self._log = log
        self._timings = timings
        self._abandoned = threading.Event()
        self._refusals = 0
        self.delivered = 0
        self.undelivered = 0

    def run(self) -> None:
        while not self._abandoned.is_set() and not self._queue.finished:
            batch = self._queue.take(IDLE_S, self._timings.batch_delay_s)
            if batch:
                self._deliver(batch)
                if not self._abandoned.is_set():
                    self._queue.settle()

    @property
    def missing(self) -> int:
        """Events that the API has not taken (yet)."""
        return self.undelivered + self._queue.pending

    def abandon(self) -> None:
        """Give up what is pending. The caller closes the client too, so that a POST in progress ends."""
        self._abandoned.set()
        self.undelivered += self._queue.discard()

    def _deliver(self, batch: list[bytes]) -> None:
        failures = 0
        while not self._abandoned.is_set():
            try:
                self._client.post_json(EVENTS_PATH, self._prefix + b",".join(batch) + b"]}")
            except LeaseLostError:  # the client told the main thread
                self._abandoned.set()  # nothing may be written any more
            except HttpError as exc:
                if not exc.retriable:
                    self._refused(batch, exc)
                    return
                failures = self._outage(failures, exc)
            except ApiError as exc:
                failures = self._outage(failures, exc)
            else:
                if failures:
                    self._log.info("the API takes events again")
                self.delivered += len(batch)
                return

    def _outage(self, failures: int, error: ApiError) -> int:
        if failures == 0 and not self._abandoned.is_set():
            self._log.warn(f"events wait for the API: {error}")
        pause_s = backoff_s(min(failures + 1, 8), self._timings.retry_delay_s)
        self._abandoned.wait(min(self._timings.outage_delay_s, pause_s))
        return failures + 1

    def _refused(self, batch: list[bytes], error: HttpError) -> None:
        if error.status in REFUSED_CONTENT and len(batch) > 1:
            half = len(batch) // 2
            self._deliver(batch[:half])
            self._deliver(batch[half:])
            return
        self.undelivered += len(batch)
        self._refusals += 1
        if self._refusals <= MAX_REFUSALS_LOGGED:
            self._log.error(f"{len(batch)} event(s) refused: {error}")
