"""States of a sandbox and its legal moves, as a table."""

from __future__ import annotations

import enum

from vm0.sandbox.errors import InvalidStateError


class State(enum.Enum):
    CREATED = "created"  #: resources allocated, nothing runs
    RUNNING = "running"  #: the guest answered; every operation is allowed
    QUIESCED = "quiesced"  #: the guest refuses new work; may be snapshotted
    PAUSED = "paused"  #: its processors stand still; it does not notice
    CRASHED = "crashed"  #: the guest is gone without having been asked
    STOPPED = "stopped"  #: nothing runs; only destroy is left


TRANSITIONS: dict[tuple[State, str], State] = {
    (State.CREATED, "start"): State.RUNNING,
    (State.RUNNING, "operate"): State.RUNNING,
    (State.RUNNING, "quiesce"): State.QUIESCED,
    (State.QUIESCED, "quiesce"): State.QUIESCED,
    (State.QUIESCED, "resume"): State.RUNNING,
    (State.RUNNING, "resume"): State.RUNNING,
    (State.RUNNING, "pause"): State.PAUSED,
    (State.PAUSED, "unpause"): State.RUNNING,
    (State.RUNNING, "crash"): State.CRASHED,
    (State.PAUSED, "crash"): State.CRASHED,
    (State.QUIESCED, "crash"): State.CRASHED,
    **{(state, "stop"): State.STOPPED for state in State},  # stop and kill are idempotent by construction
}


def next_state(state: State, action: str) -> State:
    """The state after `action`; raises InvalidStateError for a move that is not in the table."""
    try:
        return TRANSITIONS[(state, action)]
    except KeyError:
        raise InvalidStateError(action, state.value) from None
