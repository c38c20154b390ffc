"""Small pure rules: gaps in events, timelines, what a resumed run inherits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.contracts.codec import ContractError
from vm0.contracts.runs import StorageMount, TimelineStep
from vm0.contracts.storages import StorageType
from vm0.server.domain import mounts, timeline
from vm0.server.domain.events import contiguous_after, first_missing
from vm0.server.domain.mounts import ResolvedMount


@given(st.lists(st.sets(st.integers(0, 30), min_size=1), max_size=8))
def test_the_contiguous_prefix_is_the_same_in_whatever_batches_it_came(batches: list[set[int]]) -> None:
    stored: set[int] = set()
    contiguous = 0
    for batch in batches:
        stored |= batch
        contiguous = contiguous_after(contiguous, sorted(number for number in stored if number >= contiguous))
    assert contiguous == next(number for number in range(32) if number not in stored)


@pytest.mark.parametrize(
    ("contiguous", "highest", "announced", "missing"),
    [(0, -1, None, None), (3, 2, None, None), (3, 2, 3, None), (3, 2, 4, 3), (1, 5, None, 1), (5, 4, 2, None)],
)
def test_the_first_missing_event(contiguous: int, highest: int, announced: int | None, missing: int | None) -> None:
    assert first_missing(contiguous, highest, announced) == missing


def step(phase: str, attempt: int = 1, ok: bool = True) -> TimelineStep:
    return TimelineStep(phase=phase, started_at_ms=0, attempt=attempt, ok=ok)


def test_a_timeline_is_ordered_by_attempt_and_part_not_by_clocks_of_different_hosts() -> None:
    parts = [
        (2, timeline.RUNNER, (step("boot", 2),)),
        (1, timeline.AFTER, (step("lease_expired", ok=False),)),
        (1, timeline.RUNNER, (step("boot"), step("agent"))),
        (2, timeline.BEFORE, (step("queued", 2),)),
        (1, timeline.BEFORE, (step("queued"),)),
    ]
    steps = timeline.assemble(parts)
    assert [s.phase for s in steps] == ["queued", "boot", "agent", "lease_expired", "queued", "boot"]
    assert timeline.first_abnormal(steps) == "lease_expired"
    assert timeline.first_abnormal(steps[:3]) is None


def test_a_wall_clock_that_went_back_makes_no_negative_wait() -> None:
    assert timeline.queued(1, 1000, 900).duration_ms == 0


ARTIFACT = ResolvedMount(storage_type=StorageType.ARTIFACT, name="work", mount_path="/work", version_id="a" * 64)


@pytest.mark.parametrize(
    ("requested", "checkpoint", "expected"),
    [
        (None, ("work", "b" * 64), ("work", "/work", "b" * 64)),
        (None, (None, None), ("work", "/work", "a" * 64)),
        (("work", "/x", None), ("work", "b" * 64), ("work", "/x", "b" * 64)),
        (("work", "/x", "c" * 64), ("work", "b" * 64), ("work", "/x", "c" * 64)),
        (("other", "/x", None), ("work", "b" * 64), ("other", "/x", None)),
    ],
)
def test_the_artifact_of_a_resumed_run(
    requested: tuple[str, str, str | None] | None,
    checkpoint: tuple[str | None, str | None],
    expected: tuple[str, str, str | None],
) -> None:
    wanted = None if requested is None else StorageMount(**dict(zip(FIELDS, requested, strict=True)))  # type: ignore[arg-type]
    found = mounts.artifact_to_resume(wanted, ARTIFACT, *checkpoint)
    assert found is not None
    assert (found.name, found.mount_path, found.version_id) == expected


FIELDS = ("name", "mount_path", "version_id")


def test_without_anything_to_inherit_nothing_is_mounted() -> None:
    assert mounts.artifact_to_resume(None, None, "work", "b" * 64) is None
    assert mounts.memory_to_resume(None, None) is None


def test_two_mounts_with_one_path_are_refused() -> None:
    mount = StorageMount(name="a", mount_path="/a")
    mounts.check_paths((mount, None))
    with pytest.raises(ContractError, match="inherited"):
        mounts.check_paths((mount, None, mount))
