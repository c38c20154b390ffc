"""The states of a run as a table; everything not in it is an error that names state and action.

pending --claim--> running --complete--> completed | failed | cancelled
   ^                  |
   +-----requeue------+          (lease expired or given back before the agent started)
"""

from __future__ import annotations

import enum

from vm0.contracts.runs import RunStatus


class RunAction(enum.Enum):
    CLAIM = "claim"  # a runner takes it
    REQUEUE = "requeue"  # its attempt ended before the agent started
    COMPLETE = "complete"  # exit code 0 and a checkpoint
    FAIL = "fail"  # any other end
    CANCEL = "cancel"  # its user asked


TRANSITIONS: dict[tuple[RunStatus, RunAction], RunStatus] = {
    (RunStatus.PENDING, RunAction.CLAIM): RunStatus.RUNNING,
    (RunStatus.PENDING, RunAction.CANCEL): RunStatus.CANCELLED,
    (RunStatus.RUNNING, RunAction.REQUEUE): RunStatus.PENDING,
    (RunStatus.RUNNING, RunAction.COMPLETE): RunStatus.COMPLETED,
    (RunStatus.RUNNING, RunAction.FAIL): RunStatus.FAILED,
    (RunStatus.RUNNING, RunAction.CANCEL): RunStatus.CANCELLED,
}


class IllegalTransition(Exception):
    """a run cannot do this in its state"""

    def __init__(self, status: RunStatus, action: RunAction) -> None:
        super().__init__(f"a {status.value} run cannot {action.value}")
        self.status, self.action = status, action


def after(status: RunStatus, action: RunAction) -> RunStatus:
    """The status `action` leads to; raises IllegalTransition."""
    try:
        return TRANSITIONS[status, action]
    except KeyError:
        raise IllegalTransition(status, action) from None
