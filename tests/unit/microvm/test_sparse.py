"""Sparse copies are equal to their source, and as sparse."""

from __future__ import annotations

import errno
import itertools
import os
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.microvm import memory, sparse

MIB = 1024 * 1024


def sparse_file(path: pathlib.Path, size: int, pieces: dict[int, bytes]) -> pathlib.Path:
    with open(path, "wb") as file:
        file.truncate(size)
        for at, data in pieces.items():
            file.seek(at)
            file.write(data)
    return path


@pytest.mark.parametrize("reflink", [True, False])
def test_a_clone_is_equal_and_sparse(tmp_path: pathlib.Path, reflink: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reflink:
        monkeypatch.setattr(sparse, "_reflinked", lambda source, target: False)
    source = sparse_file(tmp_path / "a", 64 * MIB, {0: b"head", 20 * MIB: os.urandom(MIB), 64 * MIB - 4: b"tail"})
    sparse.clone_file(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 < 4 * MIB
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_a_clone_does_not_replace(tmp_path: pathlib.Path) -> None:
    source = sparse_file(tmp_path / "a", 10, {})
    (tmp_path / "b").write_text("kept")
    with pytest.raises(FileExistsError):
        sparse.clone_file(source, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "kept"


def test_a_copy_that_fails_leaves_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: int, target: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sparse, "_reflinked", lambda source, target: False)
    monkeypatch.setattr(sparse, "copy_extents", full)
    source = sparse_file(tmp_path / "a", 10, {})
    with pytest.raises(OSError, match="No space"):
        sparse.clone_file(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_without_copy_file_range(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(sparse, "_reflinked", lambda source, target: False)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    source = sparse_file(tmp_path / "a", 5 * MIB, {MIB: os.urandom(3 * MIB)})
    sparse.clone_file(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()


@settings(max_examples=60)
@given(st.lists(st.sampled_from([bytes(4096), b"x" * 4096, bytes(4095) + b"y"]), max_size=12), st.integers(0, 4095))
def test_nonzero_runs_cover_what_is_not_zero(pages: list[bytes], rest: int) -> None:
    block = b"".join(pages) + b"z" * rest
    runs = list(sparse.nonzero_runs(block))
    rebuilt = bytearray(len(block))
    for first, last in runs:
        rebuilt[first:last] = block[first:last]
        assert first % 4096 == 0 and block[first:last].strip(b"\0")
    assert rebuilt == block
    assert all(first > before for (_, before), (first, _) in itertools.pairwise(runs)), "runs that touch"


def test_memory_there_and_back(tmp_path: pathlib.Path) -> None:
    """Zeros that were written are holes afterwards; the loaded copy cannot be changed by anybody."""
    fd = memory.new_memory(16)
    content = os.urandom(MIB)
    os.pwrite(fd, content, 3 * MIB)
    os.pwrite(fd, bytes(4 * MIB), 8 * MIB)
    assert memory.save(fd, tmp_path / "memory") == MIB
    os.close(fd)
    loaded = memory.load(tmp_path / "memory")
    try:
        assert os.fstat(loaded).st_size == 16 * MIB
        assert os.pread(loaded, MIB, 3 * MIB) == content
        assert sparse.data_bytes(loaded) == MIB
        with pytest.raises(PermissionError):
            os.pwrite(loaded, b"x", 0)
        again = os.open(f"/proc/self/fd/{loaded}", os.O_RDWR)  # as a VMM does, and as one that was taken over would
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        os.close(again)
        with pytest.raises(PermissionError):
            os.ftruncate(loaded, 0)
    finally:
        os.close(loaded)
