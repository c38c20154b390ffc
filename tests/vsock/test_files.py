"""File transfers between a real host and a real guest: large, many, interrupted, and with hostile names."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.vsock.endpoints import Endpoint
from tests.vsock.observation import MIB, descriptors, peak_rss_bytes, reset_peak, rss_bytes, until_settled
from vm0.sandbox import Reason, SandboxOperationError
from vm0.sandbox.testing import sh
from vm0.vsock_host import GuestClient

pytestmark = pytest.mark.host


class Pattern(io.RawIOBase):
    """`size` bytes that are not the same anywhere, made while they are read."""

    def __init__(self, size: int) -> None:
        self._block = os.urandom(MIB + 7)
        self._left = size
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a writable buffer
        count = min(len(buffer), self._left, len(self._block))
        buffer[:count] = self._block[:count]
        self._left -= count
        self.digest.update(self._block[:count])
        return count


class Digest(io.RawIOBase):
    """Takes anything and keeps its hash."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        self.digest.update(data)
        return len(data)


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 64 * MIB + 1, 1024 * MIB], ids=lambda size: f"{size / MIB:g}MiB")
async def test_a_file_there_and_back(guest: Endpoint, client: GuestClient, folder: Path, size: int) -> None:
    """Memory of both sides is bounded by windows, not by the file."""
    await client.write_file(f"{folder}/warm", bytes(5 * MIB))
    source, sink = Pattern(size), Digest()
    idle = {pid: rss_bytes(pid) for pid in (os.getpid(), guest.pid)}
    for pid in idle:
        reset_peak(pid)
    assert await client.write_file(f"{folder}/file", source) == size  # type: ignore[arg-type]  # a raw stream
    assert await client.read_file(f"{folder}/file", sink) == size  # type: ignore[arg-type]
    assert sink.digest.digest() == source.digest.digest()
    for pid, before in idle.items():
        assert peak_rss_bytes(pid) - before < 24 * MIB
    assert sorted(os.listdir(folder)) == sorted({"file", "warm", "guest.err"})


async def test_many_transfers_at_once(client: GuestClient, folder: Path) -> None:
    async def there_and_back(number: int) -> bool:
        data = bytes([number]) * (300_000 + number)
        out = io.BytesIO()
        await client.write_file(f"{folder}/{number}", data)
        await client.read_file(f"{folder}/{number}", out)
        return out.getvalue() == data

    assert all(await asyncio.gather(*(there_and_back(number) for number in range(30))))


class Slow(io.RawIOBase):
    """A sink that takes nothing until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.open.wait(100)
        return len(data)


@pytest.mark.timeout(120)
async def test_transfers_that_stand_still_do_not_stop_commands(client: GuestClient, folder: Path) -> None:
    """All places for transfers are taken: one more is refused, and commands go on."""
    await client.write_file(f"{folder}/file", bytes(9 * MIB))
    sink = Slow()
    tasks = [asyncio.create_task(client.read_file(f"{folder}/file", sink)) for _ in range(32)]  # type: ignore[arg-type]
    try:
        for _ in range(5):
            await client.ping()
        with pytest.raises(SandboxOperationError) as caught:
            await client.stat(f"{folder}/file")
        assert caught.value.code == "busy"
        assert (await client.exec(sh("echo works"))).stdout.data == b"works\n"
    finally:
        sink.open.set()
    assert await asyncio.gather(*tasks) == [9 * MIB] * 32
    assert await client.stat(f"{folder}/file") is not None


async def content_of(client: GuestClient, path: str) -> bytes:
    out = io.BytesIO()
    await client.read_file(path, out)
    return out.getvalue()


class Endless(io.RawIOBase):
    def __init__(self) -> None:
        self.served = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._loop.call_soon_threadsafe(self.served.set)
        buffer[:] = bytes(len(buffer))
        return len(buffer)


async def test_a_cancelled_write_leaves_the_old_file_and_nothing_else(
    guest: Endpoint, client: GuestClient, folder: Path
) -> None:
    await client.write_file(f"{folder}/file", b"old")
    before = descriptors(guest.pid)
    source = Endless()
    writing = asyncio.create_task(client.write_file(f"{folder}/file", source))  # type: ignore[arg-type]
    await source.served.wait()
    await client.ping()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await until_settled(guest.pid, before)
    assert sorted(os.listdir(folder)) == ["file", "guest.err"]
    assert await content_of(client, f"{folder}/file") == b"old"
    await client.write_file(f"{folder}/file", b"new")
    assert await content_of(client, f"{folder}/file") == b"new"


async def test_a_cancelled_read_ends_in_the_guest(guest: Endpoint, client: GuestClient, folder: Path) -> None:
    await client.write_file(f"{folder}/file", bytes(20 * MIB))
    before = descriptors(guest.pid)
    sink = Slow()
    reading = asyncio.create_task(client.read_file(f"{folder}/file", sink))  # type: ignore[arg-type]
    await client.ping()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    sink.open.set()
    await until_settled(guest.pid, before)


class Broken(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        raise OSError("the source broke")

    def write(self, data: bytes) -> int:  # type: ignore[override]
        raise OSError("the sink broke")


async def test_a_source_or_sink_that_breaks_ends_only_its_transfer(client: GuestClient, folder: Path) -> None:
    broken: BinaryIO = Broken()  # type: ignore[assignment]
    await client.write_file(f"{folder}/good", bytes(MIB))
    with pytest.raises(OSError, match="source broke"):
        await client.write_file(f"{folder}/file", broken)
    with pytest.raises(OSError, match="sink broke"):
        await client.read_file(f"{folder}/good", broken)
    await client.ping()
    assert await client.stat(f"{folder}/file") is None


@pytest.mark.parametrize("name", ["a\udcffb", "\udcff", "ü", "a\nb", "-", "x" * 255])
async def test_any_name_that_linux_takes(client: GuestClient, folder: Path, name: str) -> None:
    await client.write_file(f"{folder}/{name}", b"content")
    await asyncio.to_thread(os.symlink, name, f"{folder}/link")
    out = io.BytesIO()
    await client.read_file(f"{folder}/{name}", out)
    assert out.getvalue() == b"content"
    found = {entry.name: entry.stat for entry in await client.list_directory(str(folder))}
    assert found[name].size == 7 and found["link"].target == name


@pytest.mark.parametrize("name", ["d\udcff", "d" * 255])
async def test_a_refusal_that_names_any_name(client: GuestClient, folder: Path, name: str) -> None:
    """The name is in the text of the error, which the wire takes as UTF-8 only."""
    (folder / name).mkdir()
    for call in (client.read_file(f"{folder}/{name}", io.BytesIO()), client.write_file(f"{folder}/{name}", b"")):
        with pytest.raises(SandboxOperationError) as caught:
            await call
        assert caught.value.code == "not_a_file"
    with pytest.raises(SandboxOperationError) as caught:
        await client.write_file(f"{name}/relative", b"")
    assert caught.value.code == "invalid"
    await client.ping()


@pytest.mark.parametrize("path", ["/tmp/a\0b", "", "\0"])
async def test_paths_that_cannot_be(client: GuestClient, path: str) -> None:
    for call in (
        client.read_file(path, io.BytesIO()),
        client.write_file(path, b""),
        client.list_directory(path),
    ):
        with pytest.raises(SandboxOperationError) as caught:
            await call
        assert caught.value.reason is Reason.GUEST and caught.value.code in ("invalid", "not_found")
    await client.ping()


async def test_a_directory_of_long_names(client: GuestClient, folder: Path) -> None:
    """Several messages, each below a frame, whatever the names weigh."""
    many = folder / "many"
    many.mkdir()
    target = "ü" * 2000
    names = sorted(f"{number:04}" + "é" * 120 for number in range(700))
    for name in names:
        (many / name).symlink_to(target)
    entries = await client.list_directory(str(many))
    assert [entry.name for entry in entries] == names
    assert {entry.stat.target for entry in entries} == {target}


async def test_a_full_disk_is_an_error_of_the_write_alone(client: GuestClient) -> None:
    with pytest.raises(SandboxOperationError) as caught:
        await client.write_file("/dev/full/x", b"x")
    assert caught.value.reason is Reason.GUEST
    await client.ping()
