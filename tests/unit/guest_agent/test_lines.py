from __future__ import annotations

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.guest_agent.lines import BoundedFile, LineSplitter


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"x", b"\n")), max_size=12), st.integers(1, 8))
def test_lines_do_not_depend_on_the_chunks(chunks: list[bytes], limit: int) -> None:
    splitter = LineSplitter(limit)
    found = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()
    whole = b"".join(chunks).split(b"\n")
    if not whole[-1]:
        whole.pop()
    assert [(line.data, line.cut) for line in found] == [(text[:limit], max(0, len(text) - limit)) for text in whole]
    assert splitter.finish() == []


@given(st.binary(max_size=40).map(lambda b: b.replace(b"x", b"\n")), st.integers(0, 4))
def test_the_tail_of_a_chunk_counts_every_line(chunk: bytes, keep: int) -> None:
    splitter = LineSplitter()
    splitter.feed(b"begun ")
    skipped, lines = splitter.feed_tail(chunk, keep)
    assert skipped + len(lines) == chunk.count(b"\n")
    whole = LineSplitter()
    expected = [line.data for line in whole.feed(b"begun " + chunk)]
    assert [line.data for line in lines] == expected[skipped:]
    assert len(lines) >= min(keep, len(expected))
    if skipped:
        assert [line.data for line in splitter.finish()] == [line.data for line in whole.finish()]


def test_a_line_without_end_is_held_to_its_limit_only() -> None:
    splitter = LineSplitter(1000)
    for _ in range(1000):
        assert splitter.feed(b"x" * 1000) == []
    assert len(splitter._partial) == 1000
    (line,) = splitter.feed(b"\n")
    assert (len(line.data), line.cut) == (1000, 999_000)


def test_a_bounded_file_ends_with_a_marker(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "agent.log"
    file = BoundedFile(str(path), limit=10)
    for data in (b"12345", b"67890", b"more", b"and more"):
        file.write(data)
    file.close()
    assert path.read_bytes() == b"1234567890\n[vm0: the rest is beyond 10 bytes]\n"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_bounded_file_cuts_inside_a_chunk(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "agent.log"
    file = BoundedFile(str(path), limit=3)
    file.write(b"abcdef")
    assert path.read_bytes().startswith(b"abc\n[vm0")


def test_a_full_disk_fails_nobody(tmp_path: pathlib.Path) -> None:
    for path in ("/dev/full", str(tmp_path / "no" / "dir")):
        file = BoundedFile(path)
        file.write(b"x")
        file.write(b"x")
        file.close()


@pytest.mark.parametrize("data", [b"a\r\nb\r\n", b"\n\n", b"\xff\xfe\n"])
def test_bytes_are_kept(data: bytes) -> None:
    assert b"\n".join(line.data for line in LineSplitter().feed(data)) + b"\n" == data
