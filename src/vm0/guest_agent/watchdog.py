"""When to stop the CLI: pure decisions from what is known at one moment. Nothing here acts or reads a clock.

running ── stop requested, tool hangs, or result printed and quiet ──▶ SIGTERM ── grace ──▶ SIGKILL ── grace ──▶ give up
   │                                                                      │                    │
   └──────────────────────────── exited ◀─────────────────────────────────┴────────────────────┘
                                    └── pipes at their end, or the drain limit ──▶ finished
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_agent.timings import Timings

WATCHED_TOOLS = frozenset({"WebFetch", "WebSearch"})
MAX_TRACKED_TOOLS = 1000

WAIT, TERMINATE, KILL, GIVE_UP, FINISH = "wait", "terminate", "kill", "give up", "finish"
AFTER_RESULT, STUCK_TOOL, REQUESTED = "stopped_after_result", "stuck_tool", "requested"


class Situation:
    """What is known about the CLI; times are monotonic seconds, None until it happened."""

    __slots__ = (
        "exited_at",
        "kill_at",
        "last_event_at",
        "result_at",
        "stop_cause",
        "stop_requested",
        "streams_ended",
        "term_at",
        "tool_deadline",
    )

    def __init__(self) -> None:
        self.exited_at: float | None = None
        self.streams_ended = False
        self.stop_requested = False
        self.result_at: float | None = None
        self.last_event_at: float | None = None
        self.tool_deadline: float | None = None
        self.stop_cause: str | None = None  # why SIGTERM was sent
        self.term_at: float | None = None
        self.kill_at: float | None = None


class Step:
    """Do `action` now; with WAIT, look again at `until` at the latest. `cause` says why a stop begins."""

    __slots__ = ("action", "cause", "until")

    def __init__(self, action: str, until: float | None = None, cause: str = "") -> None:
        self.action, self.until, self.cause = action, until, cause


def plan_step(at: Situation, now: float, timings: Timings) -> Step:
    if at.exited_at is not None:
        limit = at.exited_at + (timings.drain_s if at.term_at is None else timings.stopped_drain_s)
        return Step(FINISH) if at.streams_ended or now >= limit else Step(WAIT, limit)
    if at.kill_at is not None:
        limit = at.kill_at + timings.kill_grace_s
        return Step(GIVE_UP) if now >= limit else Step(WAIT, limit)
    if at.term_at is not None:
        limit = at.term_at + timings.stop_grace_s
        return Step(KILL) if now >= limit else Step(WAIT, limit)
    if at.stop_requested:
        return Step(TERMINATE, cause=REQUESTED)
    due = [(when, cause) for when, cause in _deadlines(at, timings) if when is not None]
    if not due:
        return Step(WAIT)
    when, cause = min(due)
    return Step(TERMINATE, cause=cause) if now >= when else Step(WAIT, when)


def _deadlines(at: Situation, timings: Timings) -> list[tuple[float | None, str]]:
    after_result = None
    if at.result_at is not None:
        quiet_since = max(at.result_at, at.last_event_at or 0.0)
        after_result = min(quiet_since + timings.result_quiet_s, at.result_at + timings.result_cap_s)
    return [(after_result, AFTER_RESULT), (at.tool_deadline, STUCK_TOOL)]


class ToolTracker:
    """Which tools the agent is waiting for, from the events as the CLI printed them (before masking)."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[str, float]] = {}

    def observe(self, event: dict[str, object], now: float) -> bool:
        """Whether a watched tool started or finished."""
        message = event.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return False
        before = len(self._running), next(iter(self._running), None)
        for block in content:
            if isinstance(block, dict):
                self._observe_block(block, now)
        return (len(self._running), next(iter(self._running), None)) != before

    def oldest(self) -> tuple[str, float] | None:
        """Name and start of the watched tool that runs longest."""
        return min(list(self._running.values()), key=lambda tool: tool[1], default=None)

    def _observe_block(self, block: dict[str, object], now: float) -> None:
        if block.get("type") == "tool_use":
            identifier, name = block.get("id"), block.get("name")
            known = isinstance(identifier, str) and isinstance(name, str) and name in WATCHED_TOOLS
            if known and len(self._running) < MAX_TRACKED_TOOLS:
                self._running.setdefault(str(identifier), (str(name), now))
        elif block.get("type") == "tool_result":
            self._running.pop(str(block.get("tool_use_id")), None)
