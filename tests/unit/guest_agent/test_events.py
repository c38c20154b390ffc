from __future__ import annotations

import json
import os
import pathlib
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.guest_agent import events
from vm0.guest_agent.events import BATCH_BYTES, BATCH_EVENTS, EventQueue, encoded


def event(number: int, size: int = 0) -> str:
    return json.dumps({"type": "t", "n": number, "pad": "x" * size})


def take_all(queue: EventQueue) -> list[dict]:
    found = []
    while batch := queue.take(0):
        found += [json.loads(data) for data in batch]
        queue.settle()
    return found


def test_events_are_numbered_in_order(tmp_path: pathlib.Path) -> None:
    queue = EventQueue(str(tmp_path))
    for number in range(1200):
        assert queue.put(event(number))
    assert len(queue.take(0)) == BATCH_EVENTS
    queue.settle()
    rest = take_all(queue)
    assert [(e["n"], e["sequenceNumber"]) for e in rest] == [(n, n) for n in range(BATCH_EVENTS, 1200)]
    assert queue.event_count == 1200 and queue.pending == 0


def test_a_batch_has_a_size_limit_but_one_event_always_fits(tmp_path: pathlib.Path) -> None:
    queue = EventQueue(str(tmp_path))
    for size in (400_000, 400_000, 400_000, 3 * BATCH_BYTES, 1):
        queue.put(event(0, size))
    sizes = []
    while batch := queue.take(0):
        sizes.append(len(batch))
        queue.settle()
    assert sizes == [2, 1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(-3, 30), max_size=40),
    memory_events=st.integers(2, 20),
    segment=st.integers(50, 2000),
)
def test_order_and_count_survive_the_disk(tmp_path_factory, steps, memory_events: int, segment: int) -> None:
    """Positive steps put that many events, others take a batch; whatever the mix, all come out once and in order."""
    folder = tmp_path_factory.mktemp("queue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "SEGMENT_BYTES", segment)
        patch.setattr(events, "BATCH_EVENTS", 7)
        queue = EventQueue(str(folder), memory_events=memory_events)
        count, found = 0, []
        for step in steps:
            for _ in range(max(0, step)):
                assert queue.put(event(count, count % 50))
                count += 1
            if step <= 0:
                found += [json.loads(data)["sequenceNumber"] for data in queue.take(0)]
                queue.settle()
            assert len(queue._memory) <= memory_events
            assert queue.pending == count - len(found)
        found += [e["sequenceNumber"] for e in take_all(queue)]
    assert found == list(range(count))
    assert queue._spilled_bytes == 0 and not queue._segments and queue._held_bytes == 0
    assert os.listdir(folder) == []


def test_memory_bytes_are_limited_with_the_batch_in_flight(tmp_path: pathlib.Path) -> None:
    queue = EventQueue(str(tmp_path), memory_bytes=100_000)
    for number in range(300):
        queue.put(event(number, 1000))
    assert queue._held_bytes <= 100_000
    queue.take(0)
    queue.put(event(300, 1000))
    assert queue._held_bytes <= 100_000 and queue.pending == 301


def test_beyond_the_disk_limit_events_are_dropped_and_counted(tmp_path: pathlib.Path) -> None:
    queue = EventQueue(str(tmp_path), memory_events=10, spill_bytes=10_000)
    kept = sum(queue.put(event(number, 100)) for number in range(1000))
    assert 0 < kept < 200
    assert queue.dropped == 1000 - kept and queue.event_count == 1000
    queue.drop(5)
    assert queue.event_count == 1005
    assert [e["sequenceNumber"] for e in take_all(queue)] == list(range(kept))
    assert not queue.put(event(1000))  # there is room again, but nobody sees what is behind the gap
    assert queue.pending == 0 and queue.overflowed


@pytest.mark.parametrize("limit", [{"run_events": 5}, {"run_bytes": 5 * 60}])
def test_a_run_has_only_so_many_events(tmp_path: pathlib.Path, limit: dict[str, Any]) -> None:
    queue = EventQueue(str(tmp_path), **limit)
    kept = 0
    for number in range(100):  # the API takes each at once, so the queue is never full
        kept += queue.put(event(number))
        queue.take(0)
        queue.settle()
    assert kept == 5 and queue.dropped == 95 and queue.overflowed


def test_a_full_disk_drops_events(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = EventQueue(str(tmp_path / "missing"), memory_events=2)
    assert [queue.put(event(number)) for number in range(4)] == [True, True, False, False]
    assert queue.dropped == 2


def test_discard_frees_everything(tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    queue = EventQueue(str(tmp_path), memory_events=2)
    for number in range(10):
        queue.put(event(number))
    queue.take(0)
    assert queue.discard() == 10
    assert queue.finished and queue.take(0) == [] and not queue.put(event(11))
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_an_api_events_are_only_counted(tmp_path: pathlib.Path) -> None:
    queue = EventQueue(str(tmp_path), keep=False)
    for number in range(20_000):
        queue.put(event(number))
    queue.drop(1)
    assert (queue.event_count, queue.pending, queue.dropped) == (20_001, 0, 0)


def test_take_waits_for_the_first_event_and_for_the_end(tmp_path: pathlib.Path) -> None:
    queue = EventQueue(str(tmp_path))
    got: list[list[bytes]] = []

    def consume() -> None:
        while not queue.finished:
            got.append(queue.take(30))
            queue.settle()

    thread = threading.Thread(target=consume)
    thread.start()
    queue.put(event(0))
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [len(batch) for batch in got if batch] == [1]


@pytest.mark.parametrize("text", ["plain", "é€😀", "lone \ud800 and \udfff"])
def test_encoding_never_fails(text: str) -> None:
    assert json.loads(encoded(json.dumps(text, ensure_ascii=False))) == text
