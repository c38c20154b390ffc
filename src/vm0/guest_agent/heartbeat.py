"""Tells the API that the guest lives, and finds out when the API does not take anything from it any more.

If the very first heartbeat fails there is no way to the API and the run cannot be reported: fatal. Later it takes
three failed cycles in a row. A run that the server has given up must not keep its sandbox.
"""

from __future__ import annotations

import json

from vm0.guest_common.http import ApiClient, ApiError, LeaseLostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from vm0.guest_common.log import Log

HEARTBEAT_PATH = "/api/webhooks/agent/heartbeat"
MAX_FAILED_CYCLES = 3
UNREACHABLE = "api_unreachable"


class Heartbeat:
    """`run` is the body of its thread; it ends with `stop`, with the lease, or with the one call of `on_fatal`."""

    def __init__(
        self,
        client: ApiClient,
        run_id: str,
        interval_s: float,
        stop: threading.Event,
        on_fatal: Callable[[str, str], None],
        log: Log,
    ) -> None:
        self._client, self._interval_s, self._stop = client, interval_s, stop
        self._body = json.dumps({"runId": run_id}).encode()
        self._on_fatal, self._log = on_fatal, log

    def run(self) -> None:
        beats, failed_cycles = 0, 0
        while not self._stop.is_set():
            try:
                self._client.post_json(HEARTBEAT_PATH, self._body)
            except LeaseLostError:
                return
            except ApiError as exc:
                failed_cycles += 1
                if self._stop.is_set():
                    return
                if beats == 0:
                    self._on_fatal(UNREACHABLE, f"the first heartbeat failed: {exc}")
                    return
                if failed_cycles >= MAX_FAILED_CYCLES:
                    self._on_fatal(UNREACHABLE, f"{failed_cycles} heartbeats in a row failed: {exc}")
                    return
                self._log.warn(f"heartbeat failed ({failed_cycles} of {MAX_FAILED_CYCLES}): {exc}")
            else:
                beats, failed_cycles = beats + 1, 0
            self._stop.wait(self._interval_s)
