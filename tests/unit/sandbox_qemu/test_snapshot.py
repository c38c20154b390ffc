"""A snapshot is used only if it is what was written, for the machine and image that it is asked for."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

import pytest

from vm0.microvm import memory
from vm0.sandbox_qemu import snapshot

MADE_FROM = {"image": "a", "vcpus": "1"}
KEY = snapshot.snapshot_key(MADE_FROM)
MIB = 1024 * 1024
Damage = Callable[[pathlib.Path], object]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A complete snapshot."""
    ram = memory.new_memory(8)
    os.pwrite(ram, os.urandom(MIB), 2 * MIB)
    disk = tmp_path / "disk"
    disk.write_bytes(b"d" * 5000)
    try:
        snapshot.save(
            tmp_path / KEY,
            ram=ram,
            state=b"state" * 100,
            disk=disk,
            kernel_parameters="vm0.x=1",
            build="b",
            made_from=MADE_FROM,
        )
    finally:
        os.close(ram)
    return tmp_path / KEY


def test_there_and_back(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    loaded = snapshot.load(folder, KEY)
    try:
        assert (loaded.facts.kernel_parameters, loaded.facts.build) == ("vm0.x=1", "b")
        assert os.fstat(loaded.memory).st_size == 8 * MIB
        assert loaded.disk.read_bytes() == b"d" * 5000
        for _ in range(2):  # each clone reads it from its start
            with os.fdopen(loaded.open_state(), "rb") as state:
                assert state.read() == b"state" * 100
    finally:
        loaded.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["disk", KEY])


def truncate(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def edit(**changes: object) -> Damage:
    def apply(folder: pathlib.Path) -> None:
        facts = json.loads((folder / "snapshot.json").read_text())
        (folder / "snapshot.json").write_text(json.dumps({**facts, **changes}))

    return apply


def punch(folder: pathlib.Path) -> None:
    """What a crash of the host leaves of a file that was not written back: the size is right, the data are zeros."""
    size = (folder / "memory").stat().st_size
    os.truncate(folder / "memory", 0)
    os.truncate(folder / "memory", size)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no-marker": (lambda folder: (folder / "complete").unlink(), "no complete snapshot"),
    "short-memory": (truncate("memory", 4 * MIB), "memory has 4194304 bytes, 8388608 were written"),
    "lost-memory": (punch, "holds 0 bytes of data"),
    "no-memory": (lambda folder: (folder / "memory").unlink(), "No such file"),
    "short-state": (truncate("state", 10), "state is not what was written"),
    "no-state": (lambda folder: (folder / "state").unlink(), "No such file"),
    "short-disk": (truncate("disk.ext4", 1), "disk.ext4 has 1 bytes"),
    "no-facts": (lambda folder: (folder / "snapshot.json").unlink(), "cannot be read"),
    "broken-facts": (truncate("snapshot.json", 20), "cannot be read"),
    "other-facts": (edit(surprise=1), "cannot be read"),
    "other-format": (edit(format=99), "format 99"),
    "foreign": (edit(key="0123456789abcdef"), "of another machine or image"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused(folder: pathlib.Path, damage: str) -> None:
    spoil, why = DAMAGES[damage]
    spoil(folder)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(snapshot.SnapshotError, match=why):
        snapshot.load(folder, KEY)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_damaged_one_is_replaced(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    os.truncate(folder / "memory", 1)
    ram = memory.new_memory(8)
    snapshot.save(
        folder, ram=ram, state=b"s", disk=tmp_path / "disk", kernel_parameters="", build="b", made_from=MADE_FROM
    )
    os.close(ram)
    snapshot.load(folder, KEY).close()


def test_a_full_disk_leaves_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, file: pathlib.Path) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "save", full)
    ram = memory.new_memory(1)
    with pytest.raises(snapshot.SnapshotError, match="No space") as caught:
        snapshot.save(
            tmp_path / KEY, ram=ram, state=b"s", disk=tmp_path, kernel_parameters="", build="", made_from=MADE_FROM
        )
    os.close(ram)
    assert caught.value.hint and list(tmp_path.iterdir()) == []


def test_the_key_is_of_everything() -> None:
    keys = {snapshot.snapshot_key({**MADE_FROM, name: "other"}) for name in (*MADE_FROM, "qemu")}
    assert len(keys | {KEY}) == 4


@pytest.mark.parametrize("size", [0, snapshot.MAX_STATE_BYTES + 1])
def test_a_state_that_cannot_be_one(size: int) -> None:
    """QEMU wrote the memory into it after all, or nothing."""
    fd = snapshot.state_file()
    os.ftruncate(fd, size)
    with pytest.raises(snapshot.SnapshotError, match=f"state of {size} bytes"):
        snapshot.state_of(fd)
    os.close(fd)
