"""A run in words and numbers: its exit code for the shell, its outcome, its isolation, its timeline. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from vm0.cli.errors import EXIT_INTERRUPTED, EXIT_RUN_FAILURE, EXIT_TIMED_OUT
from vm0.cli.event_lines import clean
from vm0.contracts.runs import Isolation, OutcomeKind, RunStatus, RunView, TimelineStep

TIER_WORDS = {
    Isolation.PROCESS: "process (none: the agent ran as a local process)",
    Isolation.EMULATED_VM: "emulated-vm",
    Isolation.HARDWARE_VM: "hardware-vm",
}


PROCESS_WARNING = (
    "the process backend isolates nothing (tier `process`): the agent runs as a local process with your rights"
)


def runner_words(asked_for: str, backend: str, isolation: Isolation, facts: Mapping[str, str]) -> str:
    """Which backend a run of this machine gets, which tier that is, and why."""
    if isolation is Isolation.PROCESS:
        return PROCESS_WARNING
    chosen = f"backend {backend}" + (" (firecracker: unsupported)" if asked_for == "auto" else "")
    why = f": {facts['why']}" if facts.get("why") else ""
    return f"{chosen}, isolation `{isolation.value}`{why}"


def exit_code(run: RunView) -> int:
    """What `vm0 run` exits with for a run that has ended; 125 for every end that is not the agent's own."""
    outcome = run.outcome
    if outcome is None:
        return EXIT_INTERRUPTED if run.status is RunStatus.CANCELLED else EXIT_RUN_FAILURE
    match outcome.kind:
        case OutcomeKind.EXITED:
            code = outcome.exit_code or 0
            # A failed run whose agent exited with 0: its checkpoint or its events were lost, which is no success.
            return code if code or run.status is RunStatus.COMPLETED else EXIT_RUN_FAILURE
        case OutcomeKind.SIGNALLED:
            return 128 + (outcome.signal or 0)
        case OutcomeKind.TIMED_OUT:
            return EXIT_TIMED_OUT
        case OutcomeKind.CANCELLED:
            return EXIT_INTERRUPTED
        case _:
            return EXIT_RUN_FAILURE


def outcome_words(run: RunView) -> str:
    outcome = run.outcome
    if outcome is None:
        return "none yet" if not run.status.terminal else "unknown"
    words = {
        OutcomeKind.EXITED: f"exited with {outcome.exit_code}",
        OutcomeKind.SIGNALLED: f"ended by signal {outcome.signal}",
        OutcomeKind.TIMED_OUT: "timed out",
        OutcomeKind.CANCELLED: "cancelled",
        OutcomeKind.LOST: "lost while the agent was running",
        OutcomeKind.UNKNOWN: "unknown: no end of the agent was observed",
    }[outcome.kind]
    if outcome.exit_code == 0 and run.status is RunStatus.FAILED:
        words += ", but " + ("something after it failed" if run.checkpoint else "without a checkpoint")
    if outcome.reason:
        words += f" ({outcome.reason})"
    return words + (f": {clean(outcome.detail).strip()}" if outcome.detail else "")


def isolation_words(run: RunView) -> str:
    return TIER_WORDS[run.isolation] if run.isolation is not None else "not known"


def duration_words(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "…"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def total_ms(run: RunView) -> float | None:
    return None if run.finished_at_ms is None else float(run.finished_at_ms - run.created_at_ms)


def time_words(unix_ms: int | None) -> str:
    if unix_ms is None:
        return "-"
    return datetime.datetime.fromtimestamp(unix_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def step_words(step: TimelineStep) -> str:
    words = f"{step.phase} {duration_words(step.duration_ms)}"
    if step.attempt > 1:
        words += f" (attempt {step.attempt})"
    return words + (f": {clean(step.detail)}" if step.detail and not step.ok else "")


def abnormal_index(run: RunView) -> int | None:
    """Which step of the timeline was the first that did not go well."""
    return next((index for index, step in enumerate(run.timeline) if not step.ok), None)


def timeline_rows(run: RunView) -> list[tuple[str, str, str, str, str]]:
    """Mark, start (offset from the run's creation), phase, duration, remark."""
    marked = abnormal_index(run)
    rows = []
    for index, step in enumerate(run.timeline):
        mark = ">" if index == marked else ("!" if not step.ok else "")
        phase = step.phase if step.attempt == 1 else f"{step.phase} #{step.attempt}"
        offset = f"+{max(0, step.started_at_ms - run.created_at_ms) / 1000:.3f} s"
        rows.append((mark, offset, phase, duration_words(step.duration_ms), clean(step.detail or "")))
    return rows


def summary_lines(run: RunView) -> list[str]:
    """What is said at the end of a run."""
    lines = [
        f"run {run.run_id}: {run.status.value}, {outcome_words(run)}, {duration_words(total_ms(run))}",
        f"isolation: {isolation_words(run)}",
    ]
    if run.first_abnormal_step and run.status is not RunStatus.COMPLETED:
        lines.append(f"first abnormal step: {run.first_abnormal_step} (`vm0 runs show {run.run_id[:8]}` has them all)")
    return lines + checkpoint_lines(run)


def checkpoint_lines(run: RunView) -> list[str]:
    checkpoint = run.checkpoint
    if checkpoint is None:
        return []
    parts = [f"checkpoint: {checkpoint.checkpoint_id}"]
    if checkpoint.cli_agent_session_id:
        parts.append(f"session {checkpoint.cli_agent_session_id}")
    if checkpoint.artifact_name:
        parts.append(f"artifact {checkpoint.artifact_name} version {(checkpoint.artifact_version or '')[:12]}")
    if checkpoint.memory_name:
        parts.append(f"memory {checkpoint.memory_name} version {(checkpoint.memory_version or '')[:12]}")
    return [", ".join(parts)]
