"""Uploads what the run's files gained since the last upload: system log, metrics, timings, network log.

Each file has a cursor of its own, which moves only over what the API has taken. A delta ends at a line end and has a
limit, everything is masked here whatever wrote it, and a record that the contract does not allow is left out with a
log line, because it would block its file for good.
"""

from __future__ import annotations

import json
import os

from vm0.contracts import codec, webhooks
from vm0.guest_agent.events import encoded
from vm0.guest_agent.metrics import METRICS_NAME
from vm0.guest_common.http import ATTEMPTS, ApiClient, ApiError, HttpError, LeaseLostError
from vm0.guest_common.log import SYSTEM_LOG_NAME
from vm0.guest_common.masking import Masker, StreamMasker
from vm0.guest_common.operations import OPERATIONS_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any

    from vm0.guest_common.log import Log

TELEMETRY_PATH = "/api/webhooks/agent/telemetry"
NETWORK_LOG_NAME = "network.jsonl"
DELTA_BYTES = 256 * 1024
MAX_FINAL_UPLOADS = 1000
MAX_PROBLEMS_LOGGED = 5
RECORD_WORDS = frozenset(
    "ts cpu mem_used mem_total disk_used disk_total action_type duration_ms success error timestamp mode action host "
    "port rule_matched method url status latency_ms request_size response_size".split()
)


class Delta:
    """What an upload takes from one file: `data` up to the position `end`."""

    __slots__ = ("data", "end")

    def __init__(self, data: bytes, end: int) -> None:
        self.data, self.end = data, end


def read_delta(path: str, start: int, *, max_lines: int | None = None, final: bool = False) -> Delta:
    """Complete lines from `start`, at most DELTA_BYTES.

    A line longer than that is taken in parts; `final` takes one without its end as well.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(DELTA_BYTES)
    except OSError:
        return Delta(b"", start)
    cut = data.rfind(b"\n") + 1
    if cut == 0 and (final or len(data) == DELTA_BYTES):
        cut = len(data)
    data = data[:cut]
    if max_lines is not None and data.count(b"\n") > max_lines:
        data = b"".join(data.splitlines(keepends=True)[:max_lines])
    return Delta(data, start + len(data))


def decode_records(data: bytes, masker: Masker, decode: Callable[[object], Any]) -> tuple[list[Any], list[str]]:
    """The masked records of some JSON lines in their JSON form, and what is wrong with the others."""
    records, problems = [], []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            records.append(decode(masker.mask_json(json.loads(line))))
        except codec.ContractError as exc:
            problems.append(str(exc))
        except (ValueError, RecursionError):
            problems.append("it is not JSON")
    return records, problems


def decode_metric(data: object) -> Any:
    return codec.encode(codec.decode(webhooks.Metric, data))


def decode_operation(data: object) -> Any:
    return codec.encode(codec.decode(webhooks.SandboxOperation, data))


def decode_network_log(data: object) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get("timestamp"), str):
        raise codec.ContractError("timestamp", "is required")
    return codec.decode(webhooks.TelemetryRequest, {"runId": _ANY_RUN, "networkLogs": [data]}).network_logs[0]


_ANY_RUN = "00000000-0000-0000-0000-000000000000"
# field of the request -> its file, its contract, how many records one request takes
_RECORD_STREAMS: dict[str, tuple[str, Callable[[object], Any], int]] = {
    "metrics": (METRICS_NAME, decode_metric, 1000),
    "sandboxOperations": (OPERATIONS_NAME, decode_operation, 1000),
    "networkLogs": (NETWORK_LOG_NAME, decode_network_log, 500),
}


class Upload:
    """One request, and what to remember once the API has taken it."""

    __slots__ = ("cursors", "fields", "problems", "system_log")

    def __init__(self, system_log: StreamMasker) -> None:
        self.fields: dict[str, Any] = {}
        self.cursors: dict[str, int] = {}
        self.problems: list[str] = []
        self.system_log = system_log


class TelemetryUploader:
    """`run` is the body of its thread; `flush` sends all that is left, after `run` has ended."""

    def __init__(
        self,
        client: ApiClient,
        run_id: str,
        runtime_dir: str,
        masker: Masker,
        log: Log,
        interval_s: float,
        stop: threading.Event,
    ) -> None:
        self._client, self._run_id, self._runtime_dir = client, run_id, runtime_dir
        self._masker, self._log, self._interval_s, self._stop = masker, log, interval_s, stop
        self._cursors: dict[str, int] = {}
        self._system_log = StreamMasker(masker)

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                self._upload(attempts=1)
            except LeaseLostError:
                return
            except ApiError as exc:
                self._log.warn(f"telemetry waits for the next upload: {exc}")
            self._stop.wait(self._interval_s)

    def flush(self) -> None:
        """Raises ApiError if the API does not take it."""
        for _ in range(MAX_FINAL_UPLOADS):
            if not self._upload(attempts=ATTEMPTS):
                break
        self._upload(attempts=ATTEMPTS, final=True)

    def _upload(self, *, attempts: int, final: bool = False) -> bool:
        """One request; False if there was nothing new in any file."""
        upload = self._plan(final)
        if not upload.cursors and not upload.fields:
            return False
        if upload.fields:
            body = encoded(json.dumps({"runId": self._run_id, **upload.fields}, ensure_ascii=False))
            try:
                self._client.post_json(TELEMETRY_PATH, body, attempts=attempts)
            except HttpError as exc:
                if exc.status not in (400, 413, 422):
                    raise
                upload.problems.append(f"a whole upload is refused and left out: {exc}")
        self._cursors |= upload.cursors
        self._system_log = upload.system_log
        for problem in upload.problems[:MAX_PROBLEMS_LOGGED]:
            self._log.warn(f"telemetry: {problem}")
        return True

    def _plan(self, final: bool) -> Upload:
        upload = Upload(self._system_log.copy())
        delta = self._delta(SYSTEM_LOG_NAME, upload, None, final)
        text = upload.system_log.feed(delta.data.decode("utf-8", "replace"))
        if final:
            text += upload.system_log.finish()
        if text:
            upload.fields["systemLog"] = text
        for field, (name, decode, max_records) in _RECORD_STREAMS.items():
            delta = self._delta(name, upload, max_records, final)
            records, problems = decode_records(delta.data, self._masker, decode)
            upload.problems += [f"a record of {name} is left out: {problem}" for problem in problems]
            if records:
                upload.fields[field] = records
        return upload

    def _delta(self, name: str, upload: Upload, max_lines: int | None, final: bool) -> Delta:
        start = self._cursors.get(name, 0)
        delta = read_delta(os.path.join(self._runtime_dir, name), start, max_lines=max_lines, final=final)
        if delta.end != start:
            upload.cursors[name] = delta.end
        return delta
