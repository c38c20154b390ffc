"""Output without end and a reader that stands still: nothing else slows down, and memory stays where it is."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from tests.vsock.endpoints import Endpoint
from tests.vsock.observation import MIB, peak_rss_bytes, reset_peak, rss_bytes
from vm0.sandbox.testing import sh
from vm0.vsock_host import GuestClient

pytestmark = pytest.mark.host

FLOOD = 1024 * MIB
STALLED = 8


async def ping_p95_s(client: GuestClient, count: int = 100) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await client.ping()
        times.append(time.perf_counter() - started)
    return sorted(times)[int(count * 0.95)]


async def test_a_flood_with_a_stalled_reader(guest: Endpoint, client: GuestClient) -> None:
    await ping_p95_s(client)
    idle_s = await ping_p95_s(client)
    memory = {pid: rss_bytes(pid) for pid in (os.getpid(), guest.pid)}
    for pid in memory:
        reset_peak(pid)
    command = sh(f"yes | head -c {FLOOD}", stdout_limit=None, timeout_s=None)
    flood = await client.start_process(command)
    others = [await client.start_process(command) for _ in range(STALLED)]

    assert await ping_p95_s(client) < max(0.05, 20 * idle_s)
    started = time.monotonic()
    assert (await client.exec(sh("echo fast"))).stdout.data == b"fast\n"
    assert time.monotonic() - started < 2

    counted, reading = 0, True

    async def read_on() -> None:
        nonlocal counted
        async for piece in flood.stdout:
            counted += len(piece)

    task = asyncio.create_task(read_on())
    worst_s = 0.0
    while reading:
        worst_s = max(worst_s, await ping_p95_s(client, 20))
        reading = not task.done()
    await task
    result = await flood.wait()
    assert (counted, result.stdout.total, result.exit_code) == (FLOOD, FLOOD, 0)
    assert worst_s < 1.0, "even at full speed a ping passes between the pieces"

    for process in others:  # they have stood still since their first window
        assert len(await process.stdout.read()) <= 256 * 1024
        await process.cancel()
    for process in others:
        async for _ in process.stdout:
            pass
        await process.wait()
    for pid, before in memory.items():
        assert peak_rss_bytes(pid) - before < (STALLED + 8) * MIB


async def test_a_collected_flood_costs_its_limit(guest: Endpoint, client: GuestClient) -> None:
    for pid in (os.getpid(), guest.pid):
        reset_peak(pid)
    memory = {pid: rss_bytes(pid) for pid in (os.getpid(), guest.pid)}
    result = await client.exec(sh(f"yes | head -c {FLOOD}", stdout_limit=MIB, timeout_s=None))
    assert (len(result.stdout.data), result.stdout.total, result.stdout.truncated) == (MIB, FLOOD, True)
    for pid, before in memory.items():
        assert peak_rss_bytes(pid) - before < 8 * MIB


async def test_input_for_a_command_that_does_not_read(guest: Endpoint, client: GuestClient) -> None:
    """The writer waits; everybody else goes on; what was not read is no loss for the command's end."""
    before = rss_bytes(guest.pid)
    process = await client.start_process(sh("sleep 1000", stdin_stream=True, timeout_s=None))
    writing = asyncio.create_task(process.write_stdin(bytes(50 * MIB)))
    for _ in range(20):
        await client.ping()
    assert not writing.done()
    assert rss_bytes(guest.pid) - before < 4 * MIB
    await process.cancel()
    await process.wait()
    await asyncio.wait_for(writing, 5)
