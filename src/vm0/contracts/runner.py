"""Bodies of `/api/runners/*`: how a runner finds, claims and keeps a run.

A claim is a lease: it has an epoch, which the server checks on every later write, and ends unless renewed. Claiming is
idempotent per (runner id, boot id, run): repeating a claim whose answer was lost gives the same lease and context.
"""

from __future__ import annotations

import dataclasses

from vm0.contracts import names
from vm0.contracts.codec import JsonObject, limited
from vm0.contracts.manifest import StorageManifest
from vm0.contracts.runs import AgentKind, Isolation, TimelineStep

RUNNER_ID = {"pattern": names.UUID, "pattern_means": names.UUID_MEANS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PollRequest:
    """Is there a run for me? Answers at once, or after up to `wait_seconds` when there is none yet."""

    group: str = limited(pattern=names.GROUP, pattern_means=names.GROUP_MEANS, max_length=128)
    isolation: Isolation = Isolation.PROCESS  # the tier this runner offers
    wait_seconds: float = limited(0.0, minimum=0, maximum=30)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run in the queue; whoever claims it first has it."""

    run_id: str
    cli_agent_type: AgentKind


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PollAnswer:
    """`job` is None when nothing waits."""

    job: Job | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """`boot_id` is new at every start of the runner, so that a restarted runner cannot be taken for its past self."""

    runner_id: str = limited(**RUNNER_ID)
    boot_id: str = limited(**RUNNER_ID)
    runner_name: str = limited("", max_length=128)
    isolation: Isolation = Isolation.PROCESS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to execute a run until it expires; `ttl_seconds` counts from when the answer was asked for."""

    epoch: int
    ttl_seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResumeSession:
    """The session to continue; its history is fetched from `session_history_url`."""

    session_id: str = limited(pattern=names.SESSION_ID, pattern_means=names.SESSION_ID_MEANS)
    session_history_url: str
    session_history_hash: str = limited(pattern=names.SHA256, pattern_means=names.SHA256_MEANS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionContext:
    """The answer to a claim: all a runner needs to execute the run."""

    run_id: str
    prompt: str
    cli_agent_type: AgentKind
    sandbox_token: str
    working_dir: str
    lease: Lease
    timeout_seconds: int
    isolation: Isolation  # the least this run accepts
    environment: dict[str, str] = dataclasses.field(default_factory=dict)  # secrets included
    secret_values: tuple[str, ...] = ()  # to be masked wherever they appear
    storage_manifest: StorageManifest | None = None
    resume_session: ResumeSession | None = None
    append_system_prompt: str | None = None
    tools: tuple[str, ...] | None = None
    disallowed_tools: tuple[str, ...] | None = None
    settings: str | None = None
    user_timezone: str | None = None
    api_start_time: int | None = None  # Unix ms at which the API accepted the run
    attempt: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Renew a lease. `agent_started` is said once, before the agent starts: from then on the run is not retried."""

    runner_id: str = limited(**RUNNER_ID)
    boot_id: str = limited(**RUNNER_ID)
    epoch: int = limited(minimum=1)
    agent_started: bool = False
    timeline: tuple[TimelineStep, ...] = limited(tuple, max_length=256)  # what was done so far, replaces the last


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAnswer:
    """Renewed. With `cancel_requested` the runner ends the run and reports it as cancelled."""

    ttl_seconds: float
    cancel_requested: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancellationsRequest:
    """Which of my runs shall end? Answers as soon as there is one that is not `known`, or after `wait_seconds`.

    A hint that saves waiting: the renewal of the lease says the same, later.
    """

    runner_id: str = limited(**RUNNER_ID)
    known: tuple[str, ...] = limited(tuple, max_length=4096)
    wait_seconds: float = limited(0.0, minimum=0, maximum=30)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancellationsAnswer:
    """Runs of this runner, executing now, whose user asked for their end; those `known` left out."""

    run_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """Give a run back whose agent was not started: it is queued again at once, if it has attempts left. The runner
    answers for that, also when it had announced the start."""

    runner_id: str = limited(**RUNNER_ID)
    epoch: int = limited(minimum=1)
    reason: str = limited(pattern=r"[a-z][a-z0-9_]{0,63}", pattern_means="a lower-case word")
    detail: str | None = limited(None, max_bytes=4096)
    timeline: tuple[TimelineStep, ...] = limited(tuple, max_length=256)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAnswer:
    """`requeued`: somebody will get it again; otherwise it had no attempts left and is failed."""

    requeued: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerHeartbeat:
    """What a runner is and does; a runner not heard of for five minutes is forgotten."""

    runner_id: str = limited(**RUNNER_ID)
    runner_name: str = limited("", max_length=128)
    group: str = limited(pattern=names.GROUP, pattern_means=names.GROUP_MEANS, max_length=128)
    isolation: Isolation = Isolation.PROCESS
    backend: str = limited("", max_length=64)
    max_concurrent: int = limited(1, minimum=0)
    running_count: int = limited(0, minimum=0)
    mode: str = limited("running", pattern="running|draining", pattern_means="`running` or `draining`")
    labels: JsonObject = limited(dict, max_length=64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerView:
    """What a runner last said of itself, and when (Unix ms of the server)."""

    last_seen_ms: int
    runner: RunnerHeartbeat


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerList:
    """The runners heard of lately."""

    runners: tuple[RunnerView, ...]
