"""Timing records: one JSON line per operation in sandbox-ops.jsonl; best effort, never fails the operation.

`{"ts", "action_type", "duration_ms", "success", "error"?}`
"""

from __future__ import annotations

import json
import os
import time

from vm0.guest_common.clock import elapsed_ms, rfc3339_ms
from vm0.guest_common.log import describe, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

OPERATIONS_NAME = "sandbox-ops.jsonl"
MAX_ERROR_CHARS = 1000  # at most 4 bytes each: within the contract's 4096 bytes


class Operations:
    """The timing records of one run; thread-safe, because a record is one write. Without a path, nothing is kept."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self.mask: Callable[[str], str] | None = None

    def record(self, action_type: str, duration_ms: float, success: bool, error: str | None = None) -> None:
        if self._path is None:
            return
        entry: dict[str, object] = {
            "ts": rfc3339_ms(),
            "action_type": action_type,
            "duration_ms": max(0.0, duration_ms),
            "success": success,
        }
        try:
            if error:
                masked = self.mask(error) if self.mask is not None else error
                entry["error"] = one_line(masked)[:MAX_ERROR_CHARS]
            line = json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except Exception:  # timing is worth nothing compared to the operation it times
            return

    def timed(self, action_type: str) -> Timed:
        """`with operations.timed("storage_download"): ...` records how long the block took and how it ended."""
        return Timed(self, action_type)


class Timed:
    """One running operation. Call `failed(text)` for a failure that is not an exception."""

    __slots__ = ("_action_type", "_error", "_operations", "_started_s")

    def __init__(self, operations: Operations, action_type: str) -> None:
        self._operations = operations
        self._action_type = action_type
        self._error: str | None = None
        self._started_s = time.monotonic()

    def failed(self, error: str) -> None:
        self._error = error or "failed"

    def __enter__(self) -> Timed:
        self._started_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        text = describe(error) if error is not None else self._error
        self._operations.record(self._action_type, elapsed_ms(self._started_s), text is None, text)


def run_operations(runtime_dir: str) -> Operations:
    """The timing records of a run: `<runtime_dir>/sandbox-ops.jsonl`."""
    return Operations(os.path.join(runtime_dir, OPERATIONS_NAME))
