"""The ring against a model: what is not yet credited is never overwritten."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vm0.vsock_proto.ring import Ring

SIZE = 32


class Lifetime(RuleBasedStateMachine):
    """Pieces go in while there is credit, are checked, and are given back in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(SIZE)
        self.live: deque[tuple[memoryview, bytes]] = deque()
        self.counter = 0

    @property
    def free(self) -> int:
        return SIZE - sum(len(view) for view, _ in self.live)

    def pattern(self, size: int) -> bytes:
        self.counter += 1
        return bytes((self.counter + n) % 251 for n in range(size))

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        content = self.pattern(data.draw(st.integers(0, self.free)))
        pieces = self.ring.put(content)
        assert b"".join(pieces) == content and len(pieces) <= 2
        offset = 0
        for piece in pieces:
            self.live.append((piece, content[offset : offset + len(piece)]))
            offset += len(piece)

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        room = self.ring.room(data.draw(st.integers(1, self.free)))
        assert len(room) >= 1
        count = data.draw(st.integers(0, len(room)))
        content = self.pattern(count)
        room[:count] = content
        self.live.append((self.ring.advance(count), content))

    @precondition(lambda self: self.live)
    @rule()
    def give_back(self) -> None:
        self.live.popleft()

    @invariant()
    def what_lives_is_untouched(self) -> None:
        assert all(view == content for view, content in self.live)


TestLifetime = Lifetime.TestCase


@given(sizes=st.lists(st.integers(1, SIZE), min_size=1, max_size=30))
def test_newest_is_what_was_put_last(sizes: list[int]) -> None:
    ring = Ring(SIZE)
    stream = b""
    for number, size in enumerate(sizes):
        content = bytes([number]) * size
        ring.put(content)
        stream += content
        for count in (0, size, min(SIZE, len(stream))):
            pieces = ring.newest(count)
            assert len(pieces) <= 2 and all(pieces)
            assert b"".join(pieces) == stream[len(stream) - count :]


@pytest.mark.parametrize("most", [1, SIZE, SIZE * 10])
def test_room_ends_where_the_memory_ends(most: int) -> None:
    ring = Ring(SIZE)
    ring.put(bytes(SIZE - 1))
    assert len(ring.room(most)) == 1
    ring.advance(1)
    assert len(ring.room(most)) == min(most, SIZE)
