"""Packing is deterministic, readable by others, and refuses to store anything but what was announced."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from tests.unit.archive.tars import contents, unpack
from vm0.archive.entries import Entry, EntryKind
from vm0.archive.errors import ArchiveError, ArchiveReason
from vm0.archive.headers import entry_blocks, parse_header, parse_pax
from vm0.archive.pack import pack
from vm0.archive.scan import scan


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "project"
    (root / "src" / ("long-" * 30)).mkdir(parents=True)
    (root / "src" / ("long-" * 30) / "x.py").write_text("print()\n")
    (root / "readme").write_text("hello\n" * 1000)
    (root / "run").write_text("#!/bin/sh\n")
    os.chmod(root / "run", 0o755)
    (root / "ünï").write_bytes(os.urandom(300_000))
    (root / "link").symlink_to("src/" + "long-" * 30)
    (root / "empty").touch()
    return root


def packed(root: pathlib.Path) -> bytes:
    out = io.BytesIO()
    size = pack(root, scan(root).entries, out)
    assert size == len(out.getvalue())
    return out.getvalue()


def test_the_same_content_gives_the_same_bytes(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = packed(project)
    copy = tmp_path / "copy"
    copy.mkdir()
    unpack(first, copy)
    for path in copy.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (1, 1))
            os.chmod(path, path.stat().st_mode & ~0o066)
    (copy / "new-empty-folder").mkdir()
    out = io.BytesIO()
    pack(copy, reversed(scan(copy).entries), out)
    assert out.getvalue() == first


def test_other_programs_read_it(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = packed(project)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    paths = [entry.path for entry in scan(project).entries]
    assert [item.name for item in members] == [f"./{path}" for path in paths]
    assert {(item.uid, item.gid, item.mtime, item.uname, item.gname) for item in members} == {(0, 0, 0, "", "")}
    modes = {item.name: item.mode for item in members}
    assert (modes["./run"], modes["./readme"], modes["./link"]) == (0o755, 0o644, 0o777)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xzf", "-", "-C", out], input=data, check=True)
    assert contents(out) == contents(project)


def test_no_entries_is_a_valid_archive(tmp_path: pathlib.Path) -> None:
    data = packed(tmp_path)
    assert gzip.decompress(data) == bytes(1024)
    assert unpack(data, tmp_path).files == 0


@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 2**40])
def test_sizes_beyond_ustar_go_into_a_pax_header(size: int) -> None:
    blocks = entry_blocks("big", EntryKind.FILE, size)
    if size < 8**11:
        assert parse_header(blocks).size == size
    else:
        length = parse_header(blocks[:512]).size
        assert parse_pax(blocks[512 : 512 + length]) == {"size": str(size).encode()}


def changed(root: pathlib.Path, entries: tuple[Entry, ...]) -> str:
    with pytest.raises(ArchiveError) as caught:
        pack(root, entries, io.BytesIO())
    assert caught.value.reason is ArchiveReason.CHANGED
    assert caught.value.hint
    return str(caught.value)


def rewrite(path: pathlib.Path) -> None:
    path.write_text("HELLO\n" * 1000)


def grow(path: pathlib.Path) -> None:
    path.write_text("hello\n" * 1001)


def shrink(path: pathlib.Path) -> None:
    path.write_text("hello\n")


def make_executable(path: pathlib.Path) -> None:
    os.chmod(path, 0o755)


def make_link(path: pathlib.Path) -> None:
    path.rename(path.parent / "moved")
    path.symlink_to("moved")


def make_fifo(path: pathlib.Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [rewrite, grow, shrink, make_executable, make_link, make_fifo, make_folder, pathlib.Path.unlink],
    ids=lambda change: change.__name__,
)
def test_a_file_that_changed_since_the_scan_is_an_error(project: pathlib.Path, change) -> None:
    entries = scan(project).entries
    change(project / "readme")
    assert "'readme' changed" in changed(project, entries)


def test_a_link_or_folder_that_changed_since_the_scan_is_an_error(
    project: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    entries = scan(project).entries
    (project / "link").unlink()
    (project / "link").symlink_to("elsewhere")
    assert "another target" in changed(project, entries)
    (project / "link").unlink()
    (project / "link").write_text("file")
    assert "it was a link" in changed(project, entries)
    (project / "link").unlink()
    (project / "link").symlink_to("src/" + "long-" * 30)
    (project / "src").rename(tmp_path / "src")
    (project / "src").symlink_to(tmp_path / "src")
    assert "not there any more" in changed(project, entries)


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from vm0.archive.scan import scan
from vm0.archive.pack import pack
root, out = sys.argv[2:]
with open(out, "wb") as file:
    pack(root, scan(root).entries, file)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_memory_is_bounded_by_the_chunk_not_the_file(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with open(root / "large", "wb") as file:
        file.truncate(100 * 1024 * 1024)
    source = pathlib.Path(__file__).resolve().parents[3] / "src"
    command = [sys.executable, "-I", "-S", "-c", PEAK, str(source), str(root), str(tmp_path / "out")]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    assert int(ran.stdout) < 40 * 1024
