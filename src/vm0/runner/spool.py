"""What a crash must not lose: one small file per claimed run, always either the old state or the new one.

::

    claimed ──▶ agent_started ──▶ reported (with the whole report) ──▶ file removed
       └────────────────────────────▲

A record is on disk before the runner acts on what it says. It holds no token: reports are made with the runner's own.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import threading
from pathlib import Path

from vm0.contracts import codec, names
from vm0.contracts.codec import ContractError, limited
from vm0.contracts.runner import ReleaseRequest
from vm0.contracts.webhooks import CompleteRequest

MAX_RECORD_BYTES = 4 * 1024 * 1024


class JournalState(enum.Enum):
    CLAIMED = "claimed"  # ours, and its agent was certainly not started
    AGENT_STARTED = "agent_started"  # its agent may have run
    REPORTED = "reported"  # how it ended is decided and in the record; the server may know it or not


ORDER = list(JournalState)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """One claim of one run. With REPORTED, exactly one of `complete` and `release` is there."""

    run_id: str = limited(pattern=names.UUID, pattern_means=names.UUID_MEANS)
    epoch: int = limited(minimum=1)
    attempt: int = limited(1, minimum=1)
    state: JournalState = JournalState.CLAIMED
    complete: CompleteRequest | None = None
    release: ReleaseRequest | None = None

    def __post_init__(self) -> None:
        reports = (self.complete is not None) + (self.release is not None)
        if reports != (1 if self.state is JournalState.REPORTED else 0):
            raise ContractError("state", "`reported` goes with exactly one report, the others with none")


class Journal:
    """The file of one claim. Methods block (fsync); call them in a thread. Safe to call from several."""

    def __init__(self, folder: Path, run_id: str, epoch: int) -> None:
        # The epoch is in the name: a report that is still being delivered and a new claim of the run are two files.
        self.path = folder / f"{run_id}.{epoch}.json"
        self._lock = threading.Lock()
        self._state: JournalState | None = None
        self._removed = False

    def write(self, record: JournalRecord) -> None:
        """Durable on return. A record older than the last one is ignored: a cancelled caller's thread may be late."""
        with self._lock:
            if self._removed or (self._state and ORDER.index(record.state) < ORDER.index(self._state)):
                return
            temporary = self.path.with_suffix(".part")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(codec.dumps(record))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(self.path.parent)
            self._state = record.state

    def remove(self) -> None:
        """Idempotent. Not synced: a record that comes back is delivered again, and that changes nothing."""
        with self._lock:
            self._removed = True
            self.path.unlink(missing_ok=True)


class Spool:
    """The folder of journals; 0700, the files 0600, because a report may quote what an agent printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder, drop half-written files."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.folder.glob("*.part"):
            path.unlink(missing_ok=True)

    def journal(self, run_id: str, epoch: int) -> Journal:
        return Journal(self.folder, run_id, epoch)

    def left_over(self) -> tuple[list[JournalRecord], list[Path]]:
        """The records of a former runner, and files that are none; those are set aside as `.bad`, never deleted."""
        records, bad = [], []
        for path in sorted(self.folder.glob("*.json")):
            record = _read(path)
            if record is not None and path.name == f"{record.run_id}.{record.epoch}.json":
                records.append(record)
            else:
                aside = path.with_suffix(".bad")
                os.replace(path, aside)
                bad.append(aside)
        return records, bad


def _read(path: Path) -> JournalRecord | None:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        return codec.loads(JournalRecord, data) if len(data) <= MAX_RECORD_BYTES else None
    except (ContractError, UnicodeDecodeError):
        return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
