"""status.json: what the runner does now, for people and for `vm0 doctor`; rewritten as a whole on every change."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
from pathlib import Path

from vm0.runner.state_directory import write_atomically

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True, kw_only=True)
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
    """Modes: starting, running, draining, stopped. A status that cannot be written is logged and stops nothing."""

    def __init__(self, path: Path, max_concurrent: int) -> None:
        self._path, self._max_concurrent = path, max_concurrent
        self._runs: dict[str, ActiveRun] = {}
        self._started_at = timestamp()
        self._writable = True
        self.mode = "starting"

    @property
    def active_runs(self) -> tuple[ActiveRun, ...]:
        return tuple(sorted(self._runs.values(), key=lambda run: run.run_id))

    def set_mode(self, mode: str) -> None:
        self.mode = mode
        self.write()

    def set_phase(self, run_id: str, sandbox_id: str, phase: str) -> None:
        started_at = timestamp()
        self._runs[sandbox_id] = ActiveRun(
            run_id=run_id, sandbox_id=sandbox_id, phase=phase, phase_started_at=started_at
        )
        self.write()

    def remove(self, sandbox_id: str) -> None:
        if self._runs.pop(sandbox_id, None) is not None:
            self.write()

    def write(self) -> None:
        fields = {
            "mode": self.mode,
            "max_concurrent": self._max_concurrent,
            "active_runs": [dataclasses.asdict(run) for run in self.active_runs],
            "started_at": self._started_at,
            "updated_at": timestamp(),
        }
        try:
            write_atomically(self._path, (json.dumps(fields, indent=2) + "\n").encode())
        except OSError as exc:
            if self._writable:
                log.warning("%s cannot be written: %s", self._path, exc, extra={"action": "status_failed"})
            self._writable = False
        else:
            self._writable = True
