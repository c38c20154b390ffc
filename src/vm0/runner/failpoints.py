"""Named places where a test can make the runner die, fail or hang: `VM0_FAILPOINTS="name=kill|raise|hang|exit:N,..."`.

A crash test iterates over `NAMES` and kills the runner at each of them; what must hold afterwards is the same
everywhere. The variable is read once, in `config`; without it a failpoint costs one dictionary look-up.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

from vm0.runner.errors import RunnerError

NAMES = (
    "claims.before_claim",
    "claims.after_claim",
    "executor.claim_journaled",
    "executor.sandbox_created",
    "executor.sandbox_started",
    "executor.bridged",
    "executor.storages_done",
    "executor.session_done",
    "executor.payload_written",
    "executor.agent_marked",
    "executor.agent_start_journaled",
    "executor.agent_started",
    "executor.agent_ended",
    "executor.outcome_read",
    "executor.outcome_journaled",
    "completion.before_report",
    "completion.after_report",
    "executor.before_destroy",
    "executor.after_destroy",
)
ACTIONS = "kill, raise, hang or exit:N"


class FailpointHit(RunnerError):
    """a failpoint raised, as VM0_FAILPOINTS asked"""


class Failpoints:
    """`await failpoints("executor.sandbox_created")` does what was asked for that name, and mostly nothing."""

    def __init__(self, actions: Mapping[str, str] | None = None) -> None:
        self._actions = dict(actions or {})

    @classmethod
    def parse(cls, text: str) -> Failpoints:
        """Raises ValueError that names the unknown failpoint or action."""
        actions = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, action = item.partition("=")
            if name not in NAMES:
                raise ValueError(f"unknown failpoint {name!r}")
            kind, _, number = action.partition(":")
            if kind not in ("kill", "raise", "hang", "exit") or (kind == "exit") != number.isdecimal():
                raise ValueError(f"failpoint {name}: the action must be {ACTIONS}, not {action!r}")
            actions[name] = action
        return cls(actions)

    async def __call__(self, name: str) -> None:
        action = self._actions.get(name, "")
        if not action:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "raise":
            raise FailpointHit(f"failpoint {name}")
        elif action == "hang":
            await asyncio.Event().wait()
        else:
            os._exit(int(action.partition(":")[2]))

    def __bool__(self) -> bool:
        return bool(self._actions)
