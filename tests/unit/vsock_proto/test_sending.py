"""The send queue against a model, and its memory."""

from __future__ import annotations

import tracemalloc

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vm0.vsock_proto.sending import IOV_MAX, SendQueue

SIZES = st.one_of(st.integers(0, 20), st.sampled_from([511, 512, 513, 4095, 4096, 4097, 70_000]))


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = SendQueue()
        self.waiting = b""
        self.counter = 0

    @rule(sizes=st.lists(SIZES, max_size=3))
    def push(self, sizes: list[int]) -> None:
        self.counter += 1
        pieces = [bytes([self.counter % 256]) * size for size in sizes]
        self.queue.push(*(memoryview(piece) if len(piece) % 2 else piece for piece in pieces))
        self.waiting += b"".join(pieces)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        offered = b"".join(self.queue.pieces())
        assert offered and self.waiting.startswith(offered)
        count = data.draw(st.integers(0, len(offered)))
        self.queue.sent(count)
        self.waiting = self.waiting[count:]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def push_between_offer_and_sent(self, data: st.DataObject) -> None:
        """As when a callback of the write queues more: what was offered must stay what it was."""
        pieces = self.queue.pieces()
        before = b"".join(pieces)
        self.push(data.draw(st.lists(SIZES, max_size=3)))
        assert b"".join(pieces) == before
        self.queue.sent(len(before))
        self.waiting = self.waiting[len(before) :]

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.waiting = b""

    @invariant()
    def size_is_what_waits(self) -> None:
        assert self.queue.size == len(self.waiting)
        assert bool(self.queue.pieces()) == bool(self.waiting)
        assert len(self.queue.pieces()) <= IOV_MAX


TestQueue = Queue.TestCase


def test_small_frames_cost_little_more_than_their_bytes() -> None:
    """A peer that asks and never reads must fill the backlog that is allowed, not twenty times of it."""
    tracemalloc.start()
    try:
        queue = SendQueue()
        while queue.size < 1_000_000:
            queue.push(b"123456789", b"")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


def test_large_pieces_are_not_copied() -> None:
    queue = SendQueue()
    data = memoryview(bytearray(100_000))
    queue.push(b"header", data)
    pieces = queue.pieces()
    assert bytes(pieces[0]) == b"header" and pieces[1].obj is data.obj
