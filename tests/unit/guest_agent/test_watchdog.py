from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.guest_agent import watchdog
from vm0.guest_agent.timings import Timings
from vm0.guest_agent.watchdog import (
    AFTER_RESULT,
    FINISH,
    GIVE_UP,
    KILL,
    REQUESTED,
    STUCK_TOOL,
    TERMINATE,
    WAIT,
    Situation,
    ToolTracker,
    plan_step,
)

TIMINGS = Timings()


def situation(**known: object) -> Situation:
    at = Situation()
    for name, value in known.items():
        setattr(at, name, value)
    return at


@pytest.mark.parametrize(
    ("known", "now", "expected"),
    [
        ({}, 1e6, (WAIT, None, "")),
        ({"streams_ended": True}, 1e6, (WAIT, None, "")),  # closed its output and works on
        ({"stop_requested": True}, 10, (TERMINATE, None, REQUESTED)),
        ({"stop_requested": True, "term_at": 10}, 14.9, (WAIT, 15, "")),
        ({"stop_requested": True, "term_at": 10}, 15, (KILL, None, "")),
        ({"term_at": 10, "kill_at": 15}, 24.9, (WAIT, 25, "")),
        ({"term_at": 10, "kill_at": 15}, 25, (GIVE_UP, None, "")),
        ({"exited_at": 10, "streams_ended": True}, 10, (FINISH, None, "")),
        ({"exited_at": 10}, 14.9, (WAIT, 15, "")),
        ({"exited_at": 10}, 15, (FINISH, None, "")),
        ({"exited_at": 10, "term_at": 9}, 11, (FINISH, None, "")),
        ({"exited_at": 10, "stop_requested": True, "streams_ended": True}, 11, (FINISH, None, "")),
        ({"result_at": 10}, 19.9, (WAIT, 20, "")),
        ({"result_at": 10}, 20, (TERMINATE, None, AFTER_RESULT)),
        ({"result_at": 10, "last_event_at": 5}, 20, (TERMINATE, None, AFTER_RESULT)),
        ({"result_at": 10, "last_event_at": 18}, 20, (WAIT, 28, "")),
        ({"result_at": 10, "last_event_at": 125}, 126, (WAIT, 130, "")),  # the cap
        ({"result_at": 10, "last_event_at": 129.9}, 130, (TERMINATE, None, AFTER_RESULT)),
        ({"tool_deadline": 310}, 309, (WAIT, 310, "")),
        ({"tool_deadline": 310}, 310, (TERMINATE, None, STUCK_TOOL)),
        ({"tool_deadline": 15, "result_at": 10}, 20, (TERMINATE, None, STUCK_TOOL)),
    ],
)
def test_steps(known: dict[str, object], now: float, expected: tuple) -> None:
    step = plan_step(situation(**known), now, TIMINGS)
    assert (step.action, step.until, step.cause) == expected


times = st.none() | st.floats(0, 1000)


@settings(max_examples=500)
@given(
    st.builds(
        situation,
        exited_at=times,
        streams_ended=st.booleans(),
        stop_requested=st.booleans(),
        result_at=times,
        last_event_at=times,
        tool_deadline=times,
        term_at=times,
        kill_at=times,
    ),
    st.floats(0, 1000),
)
def test_every_wait_ends_in_a_step(at: Situation, now: float) -> None:
    """A wait lies in the future, and when it is over there is something to do; without an end nothing is due ever."""
    step = plan_step(at, now, TIMINGS)
    if step.action == WAIT and step.until is not None:
        assert step.until > now
        assert plan_step(at, step.until, TIMINGS).action != WAIT
    if at.exited_at is not None:
        assert step.action in (WAIT, FINISH)
    if step.action == WAIT and step.until is None:
        assert not at.stop_requested and at.result_at is None and at.tool_deadline is None


@settings(max_examples=200)
@given(exits_after=st.none() | st.floats(0, 100), asked_at=st.integers(0, 50))  # whole seconds: sums stay exact
def test_a_stop_is_bounded_whatever_the_agent_does(exits_after: float | None, asked_at: int) -> None:
    at, now, actions = Situation(), float(asked_at), []
    at.stop_requested = True
    for _ in range(20):
        step = plan_step(at, now, TIMINGS)
        actions.append(step.action)
        if step.action in (FINISH, GIVE_UP):
            break
        if step.action == TERMINATE:
            at.term_at = now
        elif step.action == KILL:
            at.kill_at = now
        else:
            assert step.until is not None
            now = step.until
            if exits_after is not None and now >= asked_at + exits_after and at.exited_at is None:
                at.exited_at = now
    assert actions[-1] in (FINISH, GIVE_UP)
    assert now - asked_at <= TIMINGS.stop_grace_s + TIMINGS.kill_grace_s + TIMINGS.stopped_drain_s
    assert [a for a in actions if a in (TERMINATE, KILL)] in ([TERMINATE], [TERMINATE, KILL])


def use(identifier: object, name: object) -> dict[str, object]:
    return {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": identifier, "name": name}]}}


def done(*identifiers: object) -> dict[str, object]:
    blocks = [{"type": "tool_result", "tool_use_id": identifier} for identifier in identifiers]
    return {"type": "user", "message": {"content": blocks}}


def test_the_oldest_watched_tool_counts() -> None:
    tools = ToolTracker()
    assert not tools.observe(use("0", "Bash"), 1)
    assert tools.oldest() is None
    assert tools.observe(use("1", "WebSearch"), 2)
    assert tools.observe(use("2", "WebFetch"), 3)
    assert tools.oldest() == ("WebSearch", 2)
    assert tools.observe(done("1", "unknown"), 4)
    assert tools.oldest() == ("WebFetch", 3)
    assert tools.observe(done("2"), 5)
    assert tools.oldest() is None


def test_several_blocks_in_one_event() -> None:
    tools = ToolTracker()
    content = [*use("1", "WebFetch")["message"]["content"], *use("2", "WebFetch")["message"]["content"]]  # type: ignore[index]
    tools.observe({"message": {"content": content}}, 1)
    assert tools.observe(done("1"), 2) and tools.oldest() is not None
    assert tools.observe(done("2"), 2) and tools.oldest() is None


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"message": None},
        {"message": {"content": "text"}},
        {
            "message": {
                "content": [None, 7, [], {"type": "tool_use"}, {"type": "tool_use", "id": 1, "name": "WebFetch"}]
            }
        },
        use("x", ["WebFetch"]),
        done({"a": 1}),
    ],
)
def test_odd_events_are_no_tools(event: dict[str, object]) -> None:
    tools = ToolTracker()
    assert not tools.observe(event, 1)
    assert tools.oldest() is None


def test_tracked_tools_are_bounded() -> None:
    tools = ToolTracker()
    for number in range(watchdog.MAX_TRACKED_TOOLS * 2):
        tools.observe(use(str(number), "WebFetch"), number)
    assert len(tools._running) == watchdog.MAX_TRACKED_TOOLS


def test_unknown_timings_are_refused() -> None:
    assert Timings(drain_s=1).drain_s == 1
    with pytest.raises(AttributeError, match="drane_s"):
        Timings(drane_s=1)
