"""Frames come out the same however the bytes come in; impossible lengths end the stream before memory is taken."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vsock_proto.strategies import SEQS, chunks_of
from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.framing import HEADER, MIN_BODY, FrameDecoder, frame_header
from vm0.vsock_proto.messages import MAX_BODY

Cut = tuple[int, int, bytes]
FRAMES: list[Cut] = [(1, 1, b""), (2, 2**32 - 1, b"x"), (255, 7, bytes(range(40))), (0, 0, b"\0" * 9)]


def wire(frames: list[Cut]) -> bytes:
    return b"".join(frame_header(type, seq, len(payload)) + payload for type, seq, payload in frames)


def fed(decoder: FrameDecoder, chunks: list[bytes]) -> list[Cut]:
    """Copies, because a frame is only valid until the next one."""
    return [(f.type, f.seq, bytes(f.payload)) for chunk in chunks for f in decoder.feed(chunk)]


def test_whole_and_byte_by_byte() -> None:
    data = wire(FRAMES)
    assert fed(FrameDecoder(), [data]) == FRAMES
    assert fed(FrameDecoder(), [data[n : n + 1] for n in range(len(data))]) == FRAMES


def test_every_split_in_three() -> None:
    data = wire(FRAMES)
    for first, second in itertools.combinations(range(len(data) + 1), 2):
        assert fed(FrameDecoder(), [data[:first], data[first:second], data[second:]]) == FRAMES


@given(data=st.data(), read_size=st.integers(16, 100))
def test_random_frames_in_random_pieces(data: st.DataObject, read_size: int) -> None:
    """With a buffer that is smaller than some frames, and filled as a socket does it."""
    frames = data.draw(st.lists(st.tuples(st.integers(0, 255), SEQS, st.binary(max_size=300)), max_size=8))
    decoder = FrameDecoder(read_size)
    seen: list[Cut] = []
    for chunk in data.draw(chunks_of(wire(frames))):
        rest = memoryview(chunk)
        while rest:
            room = decoder.buffer()
            taken = data.draw(st.integers(1, min(len(room), len(rest))))
            room[:taken] = rest[:taken]
            decoder.received(taken)
            rest = rest[taken:]
            while (frame := decoder.next_frame()) is not None:
                seen.append((frame.type, frame.seq, bytes(frame.payload)))
    assert seen == frames
    assert decoder.pending == 0


@pytest.mark.parametrize("cut", [1, 3, 4, 8, 9, 12])
def test_an_unfinished_frame_is_pending(cut: int) -> None:
    decoder = FrameDecoder()
    assert fed(decoder, [wire([(1, 1, b"abcd")])[:cut]]) == []
    assert decoder.pending == cut


@pytest.mark.parametrize("length", [5, 6, 1000, MAX_BODY])
def test_legal_lengths(length: int) -> None:
    payload = bytes(length - MIN_BODY)
    assert fed(FrameDecoder(), [wire([(9, 9, payload), (1, 1, b"next")])]) == [(9, 9, payload), (1, 1, b"next")]


@pytest.mark.parametrize("length", [0, 1, 4, MAX_BODY + 1, 2**31, 2**32 - 1])
def test_impossible_lengths(length: int) -> None:
    good = wire(FRAMES)
    decoder = FrameDecoder()
    seen: list[Cut] = []
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match=f"frame body of {length} bytes"):
            seen += ((f.type, f.seq, bytes(f.payload)) for f in decoder.feed(good + length.to_bytes(4, "big")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == FRAMES, "what came before is still handed over"
    assert peak < 64 * 1024
    for _ in range(2):  # there is no way back
        with pytest.raises(RemoteProtocolError):
            list(decoder.feed(good))
        with pytest.raises(RemoteProtocolError):
            decoder.buffer()


def test_a_frame_above_the_limit_is_not_made() -> None:
    assert frame_header(1, 1, MAX_BODY - MIN_BODY)[:4] == MAX_BODY.to_bytes(4, "big")
    with pytest.raises(LocalProtocolError, match=str(MAX_BODY + 1)):
        frame_header(1, 1, MAX_BODY - MIN_BODY + 1)


def test_memory_is_one_frame_and_one_read() -> None:
    decoder = FrameDecoder(64 * 1024)
    big = wire([(1, 1, bytes(MAX_BODY - MIN_BODY))])
    tracemalloc.start()
    try:
        for _ in range(20):
            for _frame in decoder.feed(big):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MAX_BODY


def test_a_frame_that_drips_in_is_not_moved_for_each_byte() -> None:
    """A frame that fills the buffer, its end in single bytes: what is there stays where it is."""
    decoder = FrameDecoder(256 * 1024)
    frame = wire([(1, 1, bytes(256 * 1024 - HEADER))])
    assert list(decoder.feed(frame[:-1000])) == []
    tracemalloc.start()
    try:
        count = sum(1 for n in range(len(frame) - 1000, len(frame)) for _ in decoder.feed(frame[n : n + 1]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 1
    assert peak < 64 * 1024, "a move copies all of it"


@settings(max_examples=300)
@given(chunks=st.lists(st.binary(max_size=200), max_size=10))
def test_random_bytes_raise_nothing_else(chunks: list[bytes]) -> None:
    decoder = FrameDecoder()
    try:
        for chunk in chunks:
            for frame in decoder.feed(chunk):
                assert len(frame.payload) <= MAX_BODY - MIN_BODY
    except RemoteProtocolError:
        return
    assert decoder.pending <= sum(map(len, chunks))
