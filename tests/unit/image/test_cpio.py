"""cpio archives: read back by another program, and the same bytes for the same entries."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

from tests.support.capabilities import require
from vm0.image import cpio


def entries() -> list[cpio.CpioEntry]:
    return [
        cpio.file("init", b"#!/bin/sh\n", 0o755),
        cpio.directory("bin"),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("bin/busybox", os.urandom(1001), 0o755),
        cpio.directory("a/b"),
        cpio.directory("a"),
        cpio.file("a/b/empty", b""),
        cpio.file("a.b", b"between a and a/b in order of bytes"),
    ]


def test_another_program_reads_it(tmp_path: pathlib.Path) -> None:
    reader = shutil.which("busybox")
    require(reader is not None, "busybox is not installed")
    made = entries()
    subprocess.run([str(reader), "cpio", "-id"], input=cpio.archive(made), cwd=tmp_path, check=True, timeout=30)
    for entry in made:
        path = tmp_path / entry.path
        assert path.lstat().st_mode == entry.mode
        if path.is_symlink():
            assert os.readlink(path).encode() == entry.content
        elif path.is_file():
            assert path.read_bytes() == entry.content


def test_the_order_of_the_entries_is_not_in_it() -> None:
    made = entries()
    assert cpio.archive(made) == cpio.archive(reversed(made))


def test_the_format() -> None:
    """Each field where the kernel looks for it; a device has its numbers, a link its target as content."""
    archive = cpio.archive([cpio.directory("dev"), cpio.character_device("dev/console", 5, 1)])
    second = archive[116:]  # after 110 + "dev\0", padded
    fields = [int(second[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    ino, mode, uid, gid, links, mtime, size, dev_major, dev_minor, major, minor, name_size, check = fields
    assert second.startswith(b"070701")
    assert (ino, uid, gid, links, mtime, size, dev_major, dev_minor, check) == (2, 0, 0, 1, 0, 0, 0, 0, 0)
    assert (oct(mode), major, minor, name_size) == ("0o20600", 5, 1, len("dev/console") + 1)
    assert len(archive) % 4 == 0
    assert b"TRAILER!!!\0" in archive


@pytest.mark.parametrize(
    "wrong",
    [
        [cpio.file("a/b", b"")],
        [cpio.file("/a", b"")],
        [cpio.file("a", b""), cpio.directory("a")],
    ],
    ids=["no directory", "absolute", "twice"],
)
def test_what_the_kernel_would_not_unpack_is_refused(wrong: list[cpio.CpioEntry]) -> None:
    with pytest.raises(ValueError):
        cpio.archive(wrong)
