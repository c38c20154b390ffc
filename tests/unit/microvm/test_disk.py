"""Disks: made in advance, taken by a rename, made on demand, and nothing left of them."""

from __future__ import annotations

import asyncio
import pathlib
import shutil

import pytest

from tests.support.capabilities import require
from vm0.microvm.disk import DiskError, DiskPool, make_disk


@pytest.fixture
def template(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "template"
    path.write_bytes(b"disk")
    return path


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "disks"
    path.mkdir()
    return path


async def test_disks_are_made_in_advance(template: pathlib.Path, folder: pathlib.Path) -> None:
    pool = DiskPool(template, folder, ready=2)
    pool.fill()
    while len(list(folder.iterdir())) < 2:
        await asyncio.sleep(0.01)
    for number in range(5):
        target = folder.parent / f"taken-{number}"
        await pool.take(target)
        assert target.read_bytes() == b"disk"
    await pool.close()
    await pool.close()
    assert list(folder.iterdir()) == []


async def test_a_template_that_is_gone(template: pathlib.Path, folder: pathlib.Path) -> None:
    pool = DiskPool(template, folder, ready=1)
    template.unlink()
    pool.fill()
    with pytest.raises(DiskError, match="taken"):
        await pool.take(folder.parent / "taken")
    await pool.close()


def test_an_empty_file_system(tmp_path: pathlib.Path) -> None:
    require(shutil.which("mkfs.ext4") is not None, "e2fsprogs is not installed")
    make_disk(tmp_path / "d.ext4", 64)
    found = (tmp_path / "d.ext4").stat()
    assert found.st_size == 64 * 1024 * 1024 and found.st_blocks * 512 < 4 * 1024 * 1024
    with pytest.raises(DiskError, match="exists already"):
        make_disk(tmp_path / "d.ext4", 64)
    assert (tmp_path / "d.ext4").stat().st_size == found.st_size, "what was there is somebody's"


def test_a_disk_that_cannot_be(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DiskError):
        make_disk(tmp_path / "none" / "d.ext4", 64)
    require(shutil.which("mkfs.ext4") is not None, "e2fsprogs is not installed")
    with pytest.raises(DiskError, match=r"mkfs\.ext4"):
        make_disk(tmp_path / "tiny.ext4", 0)
    assert list(tmp_path.iterdir()) == []
