"""A run as its user sees it: the request, its state, its outcome and its timeline."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from vm0.contracts import names
from vm0.contracts.codec import ContractError, JsonObject, limited


class AgentKind(enum.Enum):
    """Which program does the work; the JSON field is `cliAgentType`."""

    CLAUDE_CODE = "claude-code"
    MOCK_CLAUDE = "mock-claude"  # behaves like Claude Code's stream-json mode; runs the prompt as a shell command
    COMMAND = "command"  # the prompt is a shell command


class Isolation(enum.Enum):
    """What stands between the agent and the host, weakest first. `at_least` compares."""

    PROCESS = "process"  # nothing: a local process
    EMULATED_VM = "emulated-vm"  # a VM of its own, emulated CPU
    HARDWARE_VM = "hardware-vm"  # a VM of its own, hardware virtualisation

    def at_least(self, least: Isolation) -> bool:
        order = list(Isolation)
        return order.index(self) >= order.index(least)


class RunStatus(enum.Enum):
    PENDING = "pending"  # in the queue
    RUNNING = "running"  # a runner holds its lease
    COMPLETED = "completed"  # terminal: the agent exited with 0 and its checkpoint is stored
    FAILED = "failed"  # terminal: any other end
    CANCELLED = "cancelled"  # terminal: ended because its user asked

    @property
    def terminal(self) -> bool:
        return self in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


class OutcomeKind(enum.Enum):
    """How a run ended: a closed set, never invented. What nobody observed is UNKNOWN."""

    EXITED = "exited"  # the agent ended by itself with `exit_code`
    SIGNALLED = "signalled"  # a signal nobody of us sent ended the agent
    TIMED_OUT = "timed_out"  # ended by us at the run's time limit
    CANCELLED = "cancelled"  # ended by us, or never started, because its user asked
    LOST = "lost"  # the runner or the sandbox vanished while the agent was running
    UNKNOWN = "unknown"  # no end of the agent was observed; `reason` says what was


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. `reason` is a stable word for programs (`sandbox_crashed`), `detail` a sentence for people."""

    kind: OutcomeKind
    exit_code: int | None = limited(None, minimum=0, maximum=255)
    signal: int | None = limited(None, minimum=1, maximum=64)
    reason: str | None = limited(None, pattern=r"[a-z][a-z0-9_]{0,63}", pattern_means="a lower-case word")
    detail: str | None = limited(None, max_bytes=64 * 1024)

    def __post_init__(self) -> None:
        if (self.exit_code is not None) != (self.kind is OutcomeKind.EXITED):
            raise ContractError("exitCode", "is required with kind `exited` and only there")
        if (self.signal is not None) != (self.kind is OutcomeKind.SIGNALLED):
            raise ContractError("signal", "is required with kind `signalled` and only there")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimelineStep:
    """One phase of a run. Times are Unix milliseconds of the host that did it; an open step has no `duration_ms`."""

    phase: str = limited(pattern=r"[a-z][a-z0-9_]{0,63}", pattern_means="a lower-case word")
    started_at_ms: int = limited(minimum=0)
    duration_ms: float | None = limited(None, minimum=0)
    ok: bool = True
    detail: str | None = limited(None, max_bytes=4096)
    attempt: int = limited(1, minimum=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StorageMount:
    """A stored version to be put at `mount_path`; without `version_id`, the storage's newest one."""

    name: str = limited(pattern=names.STORAGE_NAME, pattern_means=names.STORAGE_NAME_MEANS)
    mount_path: str = limited(pattern=names.ABSOLUTE_PATH, pattern_means=names.ABSOLUTE_PATH_MEANS, max_bytes=4096)
    version_id: str | None = limited(None, pattern=names.SHA256, pattern_means=names.SHA256_MEANS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Body of `POST /api/runs`."""

    prompt: str = limited(min_length=1, max_bytes=names.MAX_PROMPT_BYTES)
    cli_agent_type: AgentKind = AgentKind.CLAUDE_CODE
    group: str = limited(names.DEFAULT_GROUP, pattern=names.GROUP, pattern_means=names.GROUP_MEANS, max_length=128)
    working_dir: str = limited(
        names.DEFAULT_WORKING_DIR,
        pattern=names.ABSOLUTE_PATH,
        pattern_means=names.ABSOLUTE_PATH_MEANS,
        max_bytes=4096,
    )
    environment: dict[str, str] = limited(
        dict,
        key_pattern=names.ENV_NAME,
        pattern_means=names.ENV_NAME_MEANS,
        max_length=names.MAX_ENVIRONMENT_ENTRIES,
        max_bytes=names.MAX_ENVIRONMENT_BYTES,
    )
    #: Like `environment`, but masked in every log, event and telemetry stream, and not stored after the run.
    secrets: dict[str, str] = limited(
        dict,
        key_pattern=names.ENV_NAME,
        pattern_means=names.ENV_NAME_MEANS,
        max_length=256,
        max_bytes=128 * 1024,
    )
    storages: tuple[StorageMount, ...] = limited(tuple, max_length=64)
    artifact: StorageMount | None = None
    memory: StorageMount | None = None
    #: Continue the session of this finished run, on the artifact version that its checkpoint holds.
    resume_run_id: str | None = limited(None, pattern=names.UUID, pattern_means=names.UUID_MEANS)
    timeout_seconds: int = limited(names.DEFAULT_TIMEOUT_SECONDS, minimum=1, maximum=86400)
    #: The least isolation this run accepts; a runner with less never gets it.
    isolation: Isolation = Isolation.PROCESS
    #: How often the run may be given out. Only a run whose agent never started is given out again.
    max_attempts: int = limited(3, minimum=1, maximum=10)
    append_system_prompt: str | None = limited(None, max_bytes=64 * 1024)
    tools: tuple[str, ...] | None = limited(None, max_length=256)
    disallowed_tools: tuple[str, ...] | None = limited(None, max_length=256)
    settings: str | None = limited(None, max_bytes=64 * 1024)
    user_timezone: str | None = limited(None, pattern=names.TIME_ZONE, pattern_means="an IANA time zone name")

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ContractError("prompt", "must not be empty")
        for name in ("environment", "secrets"):
            for key in getattr(self, name):
                if key.startswith("VM0_"):
                    raise ContractError(f"{name}.{key}", "names that start with VM0_ are reserved")
        both = set(self.environment) & set(self.secrets)
        if both:
            raise ContractError(f"secrets.{min(both)}", "is also set in environment")
        mounts = [mount.mount_path for mount in (*self.storages, self.artifact, self.memory) if mount is not None]
        if len(set(mounts)) != len(mounts):
            raise ContractError("storages", "two mounts have the same mountPath")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """What a run left behind and a later run can resume from."""

    checkpoint_id: str
    cli_agent_session_id: str | None = None
    artifact_name: str | None = None
    artifact_version: str | None = None
    memory_name: str | None = None
    memory_version: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as `GET /api/runs/{runId}` shows it. Times are Unix milliseconds of the server."""

    run_id: str
    status: RunStatus
    cli_agent_type: AgentKind
    group: str
    prompt: str  # the first 4096 characters
    created_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    attempts: int = 0
    cancel_requested: bool = False
    least_isolation: Isolation = Isolation.PROCESS
    isolation: Isolation | None = None  # the tier it really had
    runner_name: str | None = None
    outcome: Outcome | None = None
    checkpoint: CheckpointView | None = None
    resumed_from: str | None = None
    events_received: int = 0
    events_contiguous: int = 0  # events 0 .. this-1 are stored without a gap
    timeline: tuple[TimelineStep, ...] = ()
    first_abnormal_step: str | None = None  # phase of the first step that was not ok


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """A page of runs, newest first."""

    runs: tuple[RunView, ...]
    next_cursor: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events of a run in order, without a gap: it ends before the first missing sequence number.

    `complete`: the run is terminal and this page reaches the last event that will ever be shown. `missing` names the
    first sequence number of a gap when events after it are stored.
    """

    events: tuple[Any, ...]
    next_after: int  # pass as `after` to get what follows
    complete: bool
    missing: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogsView:
    """What the guest and the runner reported about a run besides its events."""

    system_log: str
    metrics: tuple[JsonObject, ...]
    sandbox_operations: tuple[JsonObject, ...]
    network_logs: tuple[JsonObject, ...]
