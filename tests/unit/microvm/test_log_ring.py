"""The ring keeps the end, whatever comes; the reader never holds up who writes."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from vm0.microvm.log_ring import LogReader, LogRing


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=40), st.integers(1, 500))
def test_the_end_is_kept_and_memory_is_bounded(pieces: list[bytes], limit: int) -> None:
    ring = LogRing(limit)
    for piece in pieces:
        ring.append(piece)
    kept = b"".join(ring._pieces)
    everything = b"".join(pieces)
    assert everything.endswith(kept) and len(kept) >= min(limit, len(everything))
    assert len(kept) < limit + 300 and ring.total == len(everything)


def test_a_tail_starts_with_a_line_and_is_harmless() -> None:
    ring = LogRing()
    ring.append(b"first line\r\nsecond \x1b[31mred\xff\nthird")
    assert ring.tail() == "first line\nsecond ·[31mred\ufffd\nthird"
    assert ring.tail(20).startswith("third")
    assert LogRing().tail() == ""


async def test_a_reader_takes_a_flood() -> None:
    reader = LogReader(LogRing(4096))
    assert reader.theirs is not None
    theirs = reader.theirs.dup()
    reader.started()

    def flood() -> None:
        with theirs:
            for _ in range(200):
                theirs.sendall(b"x" * 10_000)
            theirs.sendall(b"\nlast words\n")

    await asyncio.to_thread(flood)
    async with asyncio.timeout(5):
        await reader.ended.wait()
    assert reader.ring.total == 2_000_012 and reader.ring.tail(100).endswith("last words")
    reader.close()
    reader.close()


async def test_what_had_arrived_is_read_at_close() -> None:
    reader = LogReader(LogRing())
    assert reader.theirs is not None
    reader.theirs.sendall(b"panic")
    reader.close()
    assert reader.ring.tail() == "panic"
