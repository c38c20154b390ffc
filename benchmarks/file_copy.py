"""One GiB into the guest (`file_in`) and out of it (`file_out`) ÷ a plain socket copy that does the same work.

Ours: `GuestClient.write_file` from an open file to a new file of the guest, and `read_file` from a file of the guest
to a new file here: framing, flow control and, inwards, temporary name and rename are in it. Baseline: two Python
processes, one reads a file and sends it over a Unix socket, the other receives it and writes it to a file, 256 KiB
buffers, nothing else. Throughput, first byte asked for to last byte written (not synced: neither side waits for a
disk).

First use of memory is slow on virtual machines (the host backs it page by page), and file pages are memory: each
round deletes its output first, both sides write into the same folder, take turns, and have one round of warm-up. The
folder is /dev/shm if it has the room, else the temporary folder; the detail says which.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Awaitable, Callable

from benchmarks.guest import bundle_in, running_guest, workspace
from benchmarks.measurement import Better, Effort, Measurement, Target, interleaved, median, spread
from benchmarks.peers import COPY_SERVER, running_peer
from vm0.vsock_host import GuestClient

GIB = 1024**3
MIB = 1024**2
BUFFER = 256 * 1024
SHARED_MEMORY = pathlib.Path("/dev/shm")
TARGET = Target(0.6, at_most=False)


async def run(effort: Effort) -> list[Measurement]:
    size = effort.pick(GIB, 128 * MIB)
    rounds = effort.count(7, 3)
    parent = roomy_folder(3 * size)
    with workspace(parent) as folder:
        source = folder / "source"
        fill(source, size)
        async with (
            running_guest(folder, bundle_in(folder)) as client,
            running_peer(COPY_SERVER, str(folder / "copy.sock")),
        ):
            files = _Files(source, folder / "target", folder / "copy.sock", size)
            inward = await interleaved(files.ours_in(client), files.baseline_in(), rounds=rounds)
            outward = await interleaved(files.ours_out(client), files.baseline_out(), rounds=rounds)
    detail = {"size_mib": size // MIB, "folder": str(parent or "temporary folder")}
    return [_measurement("file_in", inward, detail), _measurement("file_out", outward, detail)]


def _measurement(name: str, samples: list[list[float]], detail: dict[str, object]) -> Measurement:
    ours, baseline = samples
    return Measurement(
        name=name,
        value=median(ours),
        unit="GiB/s",
        baseline=median(baseline),
        against="file → Unix socket → file between two Python processes, 256 KiB buffers",
        samples=len(ours),
        better=Better.HIGHER,
        target=TARGET,
        detail={"ours": spread(ours), "baseline": spread(baseline), **detail},
    )


class _Files:
    """The four rounds; each gives one sample, GiB/s."""

    def __init__(self, source: pathlib.Path, target: pathlib.Path, copy_socket: pathlib.Path, size: int) -> None:
        self._source, self._target, self._copy_socket, self._size = source, target, copy_socket, size

    def ours_in(self, client: GuestClient) -> Callable[[], Awaitable[list[float]]]:
        async def copy() -> None:
            with open(self._source, "rb", buffering=0) as file:  # noqa: ASYNC230  # takes no time
                await client.write_file(str(self._target), file)

        return lambda: self._round(copy)

    def ours_out(self, client: GuestClient) -> Callable[[], Awaitable[list[float]]]:
        async def copy() -> None:
            with open(self._target, "wb", buffering=0) as file:  # noqa: ASYNC230  # takes no time
                await client.read_file(str(self._source), file)

        return lambda: self._round(copy)

    def baseline_in(self) -> Callable[[], Awaitable[list[float]]]:
        async def copy() -> None:
            await asyncio.to_thread(send, self._source, self._target, self._copy_socket)

        return lambda: self._round(copy)

    def baseline_out(self) -> Callable[[], Awaitable[list[float]]]:
        async def copy() -> None:
            await asyncio.to_thread(receive, self._source, self._target, self._copy_socket)

        return lambda: self._round(copy)

    async def _round(self, copy: Callable[[], Awaitable[None]]) -> list[float]:
        self._target.unlink(missing_ok=True)
        begun = time.perf_counter()
        await copy()
        seconds = time.perf_counter() - begun
        found = self._target.stat().st_size
        if found != self._size:
            raise RuntimeError(f"the copy has {found} bytes instead of {self._size}")
        return [self._size / GIB / seconds]


def send(source: pathlib.Path, target: pathlib.Path, copy_socket: pathlib.Path) -> None:
    """The sending half of the baseline; returns when the other half has written everything."""
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    with open(source, "rb", buffering=0) as file, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(copy_socket))
        peer.sendall(f"w {target}\n".encode())
        while count := file.readinto(buffer):
            peer.sendall(view[:count])
        peer.shutdown(socket.SHUT_WR)
        if peer.recv(1) != b"k":
            raise RuntimeError("the baseline's receiver failed")


def receive(source: pathlib.Path, target: pathlib.Path, copy_socket: pathlib.Path) -> None:
    """The receiving half of the baseline."""
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    with open(target, "wb", buffering=0) as file, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(copy_socket))
        peer.sendall(f"r {source}\n".encode())
        while count := peer.recv_into(buffer):
            file.write(view[:count])


def fill(path: pathlib.Path, size: int) -> None:
    """Content that nothing on the way could compress or share."""
    piece = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(piece)


def roomy_folder(needed: int) -> pathlib.Path | None:
    """/dev/shm, so that no disk has a say, if it can hold `needed` bytes twice over; None: the temporary folder."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return SHARED_MEMORY if min(free, memory) > 2 * needed else None
