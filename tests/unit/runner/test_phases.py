"""Phases and what is said of them: limits, interruption, undoing, and text that is safe to send."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.contracts import codec
from vm0.contracts.runs import TimelineStep
from vm0.runner.interruption import Interruption, StopCause
from vm0.runner.phases import MAX_STEPS, Interrupted, PhaseFailed, Phases, Timeline
from vm0.runner.redaction import Redactor, bounded_text


class Work:
    """Something that can hang, and that notes how it ended."""

    def __init__(self) -> None:
        self.ended = ""

    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # undoing takes a moment, and is awaited
            self.ended = "undone"
            raise


def phases() -> tuple[Phases, Timeline, Interruption]:
    interruption = Interruption()
    timeline = Timeline(1)
    return Phases(timeline, interruption), timeline, interruption


async def test_a_result_passes_through() -> None:
    run, timeline, _ = phases()

    async def work() -> int:
        return 5

    assert await run.run("a", 1, work()) == 5
    (step,) = timeline.steps()
    assert (step.phase, step.ok, step.detail) == ("a", True, None) and step.duration_ms is not None


async def test_a_failure_names_its_phase() -> None:
    run, timeline, _ = phases()

    async def work() -> None:
        raise ValueError("why")

    with pytest.raises(PhaseFailed, match="a: why"):
        await run.run("a", 1, work())
    assert timeline.steps()[0].detail == "why" and not timeline.steps()[0].ok


async def test_a_limit_undoes_the_work() -> None:
    run, timeline, _ = phases()
    work = Work()
    with pytest.raises(PhaseFailed, match=r"not done within 0\.05 s"):
        await run.run("a", 0.05, work.hang())
    assert work.ended == "undone" and not timeline.steps()[0].ok


async def test_an_interruption_undoes_the_work() -> None:
    run, timeline, interruption = phases()
    work = Work()
    asyncio.get_running_loop().call_later(0.02, interruption.request, StopCause.CANCEL_REQUESTED)
    with pytest.raises(Interrupted) as caught:
        await run.run("a", 5, work.hang())
    assert caught.value.cause is StopCause.CANCEL_REQUESTED and work.ended == "undone"
    with pytest.raises(Interrupted):
        await run.run("b", 5, work.hang())
    assert [step.phase for step in timeline.steps()] == ["a"], "what is not begun is no step"


async def test_work_that_must_not_be_interrupted_is_not() -> None:
    run, _, interruption = phases()
    interruption.request(StopCause.CANCEL_REQUESTED)

    async def work() -> int:
        await asyncio.sleep(0.01)
        return 5

    assert await run.run("a", 1, work(), interruptible=False) == 5


async def test_a_failure_after_the_lease_was_lost_is_the_loss() -> None:
    run, _, interruption = phases()

    async def work() -> None:
        interruption.request(StopCause.LEASE_LOST)
        raise ValueError("a consequence")

    with pytest.raises(Interrupted) as caught:
        await run.run("a", 1, work())
    assert caught.value.cause is StopCause.LEASE_LOST


async def test_cancelling_from_outside_undoes_the_work() -> None:
    run, _, _ = phases()
    work = Work()
    task = asyncio.create_task(run.run("a", 5, work.hang()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "undone"


def test_a_timeline_is_bounded() -> None:
    timeline = Timeline(1)
    for _ in range(MAX_STEPS + 5):
        with timeline.step("a"):
            pass
    assert len(timeline.steps()) == MAX_STEPS


@settings(deadline=None)  # the machine may be busy
@given(st.text(), st.integers(3, 64))
def test_any_text_fits_its_contract(text: str, limit: int) -> None:
    found = bounded_text(text, limit)
    assert len(found.encode()) <= limit and "\0" not in found


@settings(deadline=None)  # the machine may be busy
@given(st.one_of(st.text(), st.text(alphabet="\ud800\udfff\0ü😀")))
def test_any_error_fits_the_timeline(text: str) -> None:
    timeline = Timeline(1)
    with pytest.raises(PhaseFailed):
        with timeline.step("a"):
            raise PhaseFailed("a", text)
    (step,) = timeline.steps()
    assert codec.decode(TimelineStep, codec.encode(step)) == step


@pytest.mark.parametrize(
    ("secrets", "text", "expected"),
    [
        (["abcdef", "abcdefgh"], "x abcdefgh y", "x *** y"),
        (["abcd"], "abcd", "abcd"),  # too short to be masked, as in the guest
        (["first\nsecond-line"], "only second-line", "only ***"),
        ([], "GET /api/objects/a/b?expires=1&signature=x failed", "GET /api/objects/a/b?… failed"),
        ([], 'see "https://s3.example/b/k?X-Amz-Signature=x"', 'see "https://s3.example/b/k?…"'),
        ([], "what? nothing", "what? nothing"),
    ],
)
def test_what_is_redacted(secrets: list[str], text: str, expected: str) -> None:
    assert Redactor(secrets)(text) == expected
