"""Everything that talks to the API while the agent runs: four threads, their common end, and what was lost."""

from __future__ import annotations

import threading
import time

from vm0.guest_agent.heartbeat import Heartbeat
from vm0.guest_agent.inbox import DONE
from vm0.guest_agent.metrics import METRICS_NAME, MetricsSampler
from vm0.guest_agent.sender import EventSender
from vm0.guest_agent.telemetry import TelemetryUploader
from vm0.guest_common.http import ApiClient, ApiError
from vm0.guest_common.log import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm0.guest_agent.events import EventQueue
    from vm0.guest_agent.inbox import Inbox
    from vm0.guest_agent.timings import Timings
    from vm0.guest_common.environment import Environment
    from vm0.guest_common.log import Log
    from vm0.guest_common.masking import Masker
    from vm0.guest_common.operations import Operations

EVENTS_THREAD, FINAL_TELEMETRY_THREAD = "events", "final-telemetry"
LEASE_LOST = "lease_lost"
JOIN_S = 1.0


class Reporting:
    """Started by `start`; `finish` must be called. Any thread may ask the main thread to stop through the inbox."""

    def __init__(
        self,
        environment: Environment,
        masker: Masker,
        queue: EventQueue,
        messages: Inbox,
        log: Log,
        operations: Operations,
        timings: Timings,
    ) -> None:
        self._environment, self._messages, self._log = environment, messages, log
        self._operations, self._timings, self._queue = operations, timings, queue
        self._stop = threading.Event()  # ends the periodic threads
        self._abandoned = threading.Event()  # ends retries
        self.client = self.new_client(self._abandoned)
        self.sender = EventSender(self.client, environment.run_id, queue, log, timings)
        self._heartbeat = Heartbeat(
            self.client, environment.run_id, timings.heartbeat_interval_s, self._stop, messages.request_stop, log
        )
        self._metrics = MetricsSampler(environment.runtime_file(METRICS_NAME), timings.metrics_interval_s, self._stop)
        self._telemetry = TelemetryUploader(
            self.client,
            environment.run_id,
            environment.runtime_dir,
            masker,
            log,
            timings.telemetry_interval_s,
            self._stop,
        )
        self._threads: dict[str, threading.Thread] = {}

    def new_client(self, abandoned: threading.Event) -> ApiClient:
        """Raises ValueError if the API's address is malformed."""
        return ApiClient(
            self._environment.api_url,
            delay_s=self._timings.retry_delay_s,
            pause=abandoned.wait,
            on_lease_lost=lambda: self._messages.request_stop(LEASE_LOST, "the run belongs to another runner by now"),
        )

    def start(self) -> None:
        for name, body, operation in (
            ("heartbeat", self._heartbeat.run, "heartbeat_start"),
            ("metrics", self._metrics.run, "metrics_collector_start"),
            ("telemetry", self._telemetry.run, "telemetry_upload_start"),
            (EVENTS_THREAD, self.sender.run, ""),
        ):
            started_s = time.monotonic()
            self._spawn(name, body)
            if operation:
                self._operations.record(operation, (time.monotonic() - started_s) * 1000, True)

    def deliver_events(self, limit_s: float) -> None:
        """Wait until every event is delivered; a request to stop shortens that to the terminated limit."""
        self._queue.close()
        if EVENTS_THREAD not in self._threads:
            return
        deadline = time.monotonic() + limit_s
        if not self._messages.wait_done(EVENTS_THREAD, limit_s) and self._messages.stop is not None:
            rest_s = min(self._timings.terminated_flush_s / 2, deadline - time.monotonic())
            if self._messages.stop.reason != LEASE_LOST:
                self._messages.wait_done(EVENTS_THREAD, rest_s, until_stop=False)

    def finish(self, telemetry_limit_s: float) -> None:
        """Send the last telemetry, end the threads, give up what is not delivered by now. Bounded, idempotent."""
        self._stop.set()
        lost = self._messages.stop is not None and self._messages.stop.reason == LEASE_LOST
        deadline = time.monotonic() + telemetry_limit_s
        if not lost and self._join("telemetry", telemetry_limit_s):
            self._spawn(FINAL_TELEMETRY_THREAD, self._flush_telemetry)
            rest_s = deadline - time.monotonic()
            self._messages.wait_done(FINAL_TELEMETRY_THREAD, rest_s, until_stop=False)
        self._abandoned.set()
        self.sender.abandon()
        self.client.close()
        for name in list(self._threads):
            self._join(name, JOIN_S)

    def _flush_telemetry(self) -> None:
        try:
            self._telemetry.flush()
        except ApiError as exc:
            self._log.warn(f"the last telemetry is not delivered: {exc}")

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        def run() -> None:
            try:
                body()
            except Exception as exc:  # a bug: say so instead of losing a thread silently
                self._messages.request_stop("internal_error", f"thread {name} failed: {describe(exc)}")
                self._log.error(f"thread {name} failed: {exc!r}")
            finally:
                self._messages.post(DONE, name)

        self._threads[name] = threading.Thread(target=run, name=name, daemon=True)
        self._threads[name].start()

    def _join(self, name: str, limit_s: float) -> bool:
        thread = self._threads.get(name)
        if thread is not None:
            thread.join(limit_s)
        return thread is None or not thread.is_alive()
