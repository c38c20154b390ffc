"""Bodies of `/api/webhooks/agent/*`: what a run itself, or the runner for it, tells the server."""

from __future__ import annotations

import dataclasses

from vm0.contracts import names
from vm0.contracts.codec import ContractError, JsonObject, limited
from vm0.contracts.runs import Isolation, Outcome, OutcomeKind, TimelineStep

RUN_ID = {"pattern": names.UUID, "pattern_means": names.UUID_MEANS}
TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """`events`: objects with text `type` and integer `sequenceNumber` >= 0; all other keys pass through.

    Idempotent per sequence number: the first delivery is kept, a repeated one is counted as received.
    """

    run_id: str = limited(**RUN_ID)
    events: tuple[JsonObject, ...] = limited(min_length=1, max_length=names.MAX_EVENTS_PER_POST)

    def __post_init__(self) -> None:
        for index, event in enumerate(self.events):
            if not isinstance(event.get("type"), str):
                raise ContractError(f"events[{index}].type", "must be text")
            number = event.get("sequenceNumber")
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 2**53:
                raise ContractError(f"events[{index}].sequenceNumber", "must be a whole number from 0 to 2^53")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventsAnswer:
    """The batch is stored: as durable as the database makes it."""

    received: int
    first_sequence: int
    last_sequence: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest:
    """The guest agent lives."""

    run_id: str = limited(**RUN_ID)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OkAnswer:
    """Nothing more to say."""

    ok: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One sample of the guest: CPU in percent, the rest in bytes."""

    JSON_NAMES = "snake"

    ts: str = limited(pattern=TIMESTAMP, pattern_means="an RFC 3339 time")
    cpu: float
    mem_used: int = limited(minimum=0)
    mem_total: int = limited(minimum=0)
    disk_used: int = limited(minimum=0)
    disk_total: int = limited(minimum=0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOperation:
    """One timed operation."""

    JSON_NAMES = "snake"

    ts: str = limited(pattern=TIMESTAMP, pattern_means="an RFC 3339 time")
    action_type: str = limited(min_length=1, max_length=64)
    duration_ms: float = limited(minimum=0)
    success: bool
    error: str | None = limited(None, max_bytes=4096)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryRequest:
    """A delta of each stream. At least one record each time; the server appends what it gets."""

    run_id: str = limited(**RUN_ID)
    system_log: str = limited("", max_bytes=1024 * 1024, nul=True)
    metrics: tuple[Metric, ...] = limited(tuple, max_length=1000)
    sandbox_operations: tuple[SandboxOperation, ...] = limited(tuple, max_length=1000)
    network_logs: tuple[JsonObject, ...] = limited(tuple, max_length=500)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryAnswer:
    """Stored."""

    success: bool
    id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareHistoryRequest:
    """Announce a session history of `size` bytes, named by its SHA-256."""

    run_id: str = limited(**RUN_ID)
    hash: str = limited(pattern=names.SHA256, pattern_means=names.SHA256_MEANS)
    size: int = limited(minimum=0, maximum=names.MAX_HISTORY_BYTES)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareHistoryAnswer:
    """`existing`: stored already; otherwise PUT it to `presigned_url` as application/octet-stream."""

    existing: bool
    presigned_url: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSnapshot:
    """The committed version of the artifact."""

    artifact_name: str = limited(pattern=names.STORAGE_NAME, pattern_means=names.STORAGE_NAME_MEANS)
    artifact_version: str = limited(pattern=names.SHA256, pattern_means=names.SHA256_MEANS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemorySnapshot:
    """The committed version of the memory."""

    memory_name: str = limited(pattern=names.STORAGE_NAME, pattern_means=names.STORAGE_NAME_MEANS)
    memory_version: str = limited(pattern=names.SHA256, pattern_means=names.SHA256_MEANS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """The state a later run can resume: session, its history (by hash, uploaded before), artifact and memory.

    An agent without sessions (`command`) leaves the three session fields out. Idempotent: one checkpoint per run.
    """

    run_id: str = limited(**RUN_ID)
    cli_agent_type: str = limited(min_length=1, max_length=64)
    cli_agent_session_id: str | None = limited(None, pattern=names.SESSION_ID, pattern_means=names.SESSION_ID_MEANS)
    cli_agent_session_history_hash: str | None = limited(None, pattern=names.SHA256, pattern_means=names.SHA256_MEANS)
    artifact_snapshot: ArtifactSnapshot | None = None
    memory_snapshot: MemorySnapshot | None = None

    def __post_init__(self) -> None:
        if (self.cli_agent_session_id is None) != (self.cli_agent_session_history_hash is None):
            raise ContractError("cliAgentSessionHistoryHash", "goes with cliAgentSessionId: both or neither")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAnswer:
    """The checkpoint is stored."""

    checkpoint_id: str
    agent_session_id: str | None = None
    conversation_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompleteRequest:
    """The end of a run, told by the runner. Idempotent: the first report stands, a later one gets its status.

    `outcome` says more than `exit_code`; a sender without it means `exited` with that code.
    """

    run_id: str = limited(**RUN_ID)
    exit_code: int | None = limited(None, minimum=0, maximum=255)
    error: str | None = limited(None, max_bytes=64 * 1024)
    outcome: Outcome | None = None
    epoch: int | None = limited(None, minimum=1)
    isolation: Isolation | None = None
    timeline: tuple[TimelineStep, ...] = limited(tuple, max_length=256)
    #: Highest sequence number + 1 the guest agent says it has sent; a gap below it is shown as missing.
    event_count: int | None = limited(None, minimum=0)

    def __post_init__(self) -> None:
        if self.exit_code is None and self.outcome is None:
            raise ContractError("exitCode", "is required without outcome")

    def observed(self) -> Outcome:
        """The outcome this report stands for."""
        if self.outcome is not None:
            return self.outcome
        return Outcome(kind=OutcomeKind.EXITED, exit_code=self.exit_code, detail=self.error)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompleteAnswer:
    """`status`: what the run is now (`completed`, `failed` or `cancelled`)."""

    success: bool
    status: str
