"""status.json: what the runner does now, for people and for `vm0 doctor`; rewritten as a whole on every change."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import logging
import threading
from pathlib import Path

from vm0.runner.state_directory import write_atomically

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRun:
    """One run in execution."""

    run_id: str
    sandbox_id: str
    phase: str
    phase_started_at: str


def timestamp() -> str:
    """Now, as ISO 8601 with milliseconds and Z."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class StatusFile:
    """Modes: starting, running, draining, stopped. A status that cannot be written is logged and stops nothing.

    A mode is written at once. Phases change a dozen times per run: `keep` writes them as fast as the disk takes them,
    each time the newest, without holding up the event loop.
    """

    def __init__(self, path: Path, max_concurrent: int) -> None:
        self._path, self._max_concurrent = path, max_concurrent
        self._runs: dict[str, ActiveRun] = {}
        self._started_at = timestamp()
        self._writable = True
        self._changed = asyncio.Event()
        self._lock = threading.Lock()
        self._version = self._written = 0
        self.mode = "starting"

    def set_mode(self, mode: str) -> None:
        self.mode = mode
        self._write(*self._snapshot())

    def set_phase(self, run_id: str, sandbox_id: str, phase: str) -> None:
        started_at = timestamp()
        self._runs[sandbox_id] = ActiveRun(
            run_id=run_id, sandbox_id=sandbox_id, phase=phase, phase_started_at=started_at
        )
        self._changed.set()

    def remove(self, sandbox_id: str) -> None:
        if self._runs.pop(sandbox_id, None) is not None:
            self._changed.set()

    async def keep(self) -> None:
        """Write every change, until cancelled; a change that is overtaken by the next is not written by itself."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.to_thread(self._write, *self._snapshot())

    def _snapshot(self) -> tuple[int, bytes]:
        self._version += 1
        fields = {
            "mode": self.mode,
            "max_concurrent": self._max_concurrent,
            "active_runs": [
                {
                    "run_id": run.run_id,
                    "sandbox_id": run.sandbox_id,
                    "phase": run.phase,
                    "phase_started_at": run.phase_started_at,
                }
                for run in sorted(self._runs.values(), key=lambda run: run.run_id)
            ],
            "started_at": self._started_at,
            "updated_at": timestamp(),
        }
        return self._version, (json.dumps(fields, indent=2) + "\n").encode()

    def _write(self, version: int, data: bytes) -> None:
        with self._lock:
            if version <= self._written:  # a thread that was overtaken
                return
            self._written = version
            try:
                write_atomically(self._path, data)
                self._writable = True
            except OSError as exc:
                if self._writable:
                    log.warning("%s cannot be written: %s", self._path, exc, extra={"action": "status_failed"})
                self._writable = False
