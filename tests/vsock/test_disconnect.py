"""The host goes away at every stage: everything that ran is dead, nothing half-written stays, and the guest comes back
with a growing distance between its tries; or its limit ends it, or a signal does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.vsock.endpoints import Endpoint, Peer, RawHost, guest_process
from tests.vsock.observation import MIB, descriptors, until_dead, until_settled
from tests.vsock.places import new_place
from tests.vsock.test_bad_hosts import command, greeted, pong
from tests.vsock.test_commands import traced
from vm0.guest_bundle import GuestBundle
from vm0.vsock_proto import messages as m

pytestmark = pytest.mark.host

# A command with a child, a daemon in a session of its own, and an orphan; tells all their numbers.
FAMILY = """
trap '' TERM HUP INT
sleep 1000 & echo $!
(setsid sh -c 'trap "" TERM HUP; echo $$; while :; do sleep 1; done' &)
(sleep 1000 & echo $!)
echo $$
while :; do sleep 1; done
"""


async def family(peer: Peer, seq: int = 1, flags: int = 0) -> list[int]:
    """Start it and wait until all four are there."""
    await peer.send(command(FAMILY, flags=flags), seq)
    await peer.expect(m.Started, seq)
    output = b""
    while output.count(b"\n") < 4:
        output += (await peer.expect(m.Output, seq)).data
    return [int(word) for word in output.split()]


async def before_ready(peer: Peer, folder: Path) -> list[int]:
    return []


async def after_ready(peer: Peer, folder: Path) -> list[int]:
    await peer.expect(m.Ready)
    return []


async def mid_exec(peer: Peer, folder: Path) -> list[int]:
    await peer.expect(m.Ready)
    return await family(peer)


async def mid_flood(peer: Peer, folder: Path) -> list[int]:
    """With output that waits for credit, and a limit for draining it that nobody should wait for."""
    await peer.expect(m.Ready)
    await peer.send(command("yes", drain_ms=60_000), 1)
    pid = (await peer.expect(m.Started, 1)).pid
    total = 0
    while total < m.OUTPUT_WINDOW:
        total += len((await peer.expect(m.Output, 1)).data)
    return [pid]


async def mid_drain(peer: Peer, folder: Path) -> list[int]:
    """The command is over, its output waits for credit that never comes."""
    await peer.expect(m.Ready)
    await peer.send(command("head -c 300000 /dev/zero", drain_ms=60_000), 1)
    pid = (await peer.expect(m.Started, 1)).pid
    await until_dead(pid)
    return [pid]


async def mid_stdin(peer: Peer, folder: Path) -> list[int]:
    await peer.expect(m.Ready)
    pids = await family(peer, flags=m.STDIN_STREAM)
    await peer.send(m.Stdin(0, bytes(m.OUTPUT_WINDOW)), 1)
    return pids


async def mid_write(peer: Peer, folder: Path) -> list[int]:
    await peer.expect(m.Ready)
    await peer.send(m.WriteFile(f"{folder}/files/big", 0, 0o600, ""), 1)
    for _ in range(8):
        await peer.send(m.Data(0, bytes(m.MAX_CHUNK)), 1)
    await peer.expect(m.Credit, 1)
    return []


async def mid_read(peer: Peer, folder: Path) -> list[int]:
    await peer.expect(m.Ready)
    for seq in range(1, 5):
        await peer.send(m.ReadFile(f"{folder}/source", m.UNLIMITED), seq)
    await peer.expect(m.FileStat)
    return []


async def mid_frame(peer: Peer, folder: Path) -> list[int]:
    pids = await mid_exec(peer, folder)
    await peer.send_bytes(b"\0\0\1\0\3\0")
    return pids


STAGES: list[Callable[[Peer, Path], Awaitable[list[int]]]] = [
    before_ready,
    after_ready,
    mid_exec,
    mid_flood,
    mid_drain,
    mid_stdin,
    mid_write,
    mid_read,
    mid_frame,
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_the_host_goes_away(
    served: Endpoint, host: RawHost, folder: Path, stage: Callable[[Peer, Path], Awaitable[list[int]]]
) -> None:
    (folder / "source").write_bytes(bytes(20 * MIB))
    (folder / "files").mkdir()
    first = await greeted(host)
    await pong(first)
    before = descriptors(served.pid) - 1
    first.close()
    peer = await host.accept()
    pids = await stage(peer, folder)
    started = time.monotonic()
    peer.close()
    again = await greeted(host)
    await pong(again)
    assert time.monotonic() - started < 3, "nothing that is left may hold the next connection up"
    await until_dead(*pids)
    assert os.listdir(folder / "files") == []
    await again.send(command("echo works"), 1)
    await again.expect(m.Started, 1)
    assert (await again.expect(m.Output, 1)).data == b"works\n"
    assert (await again.expect(m.Result, 1)).ended == m.EXITED
    await until_settled(served.pid, before + 1)
    again.close()


@pytest.mark.parametrize("answered", [True, False])
async def test_the_host_goes_away_during_the_shutdown(served: Endpoint, host: RawHost, answered: bool) -> None:
    """Then the guest does not come back: it is shut down."""
    peer = await greeted(host)
    pids = await family(peer)
    await peer.send(m.Shutdown(), 2)
    if answered:
        seq, message = await peer.receive()
        while not isinstance(message, m.Done):
            seq, message = await peer.receive()
        assert seq == 2
    peer.close()
    assert await served.exit_code() == 0
    await until_dead(*pids)


async def test_nothing_runs_when_the_shutdown_is_answered(served: Endpoint, host: RawHost) -> None:
    peer = await greeted(host)
    pids = await family(peer)
    await peer.send(m.Shutdown(), 2)
    _, message = await peer.receive()
    while not isinstance(message, m.Done):
        _, message = await peer.receive()
    await until_dead(*pids, limit_s=0.5)
    await peer.send(command("true"), 3)
    assert (await peer.expect(m.Error, 3)).text
    peer.close()


async def test_tries_grow_apart(lone: Endpoint, host: RawHost) -> None:
    """A host that drops every connection unused is no reason to dial without a pause."""
    dialled = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.5):
            while True:
                (await host.accept()).close()
                dialled += 1
    assert 3 <= dialled <= 12
    peer = await greeted(host)  # and it is still there
    await pong(peer)
    started = time.monotonic()
    peer.close()
    again = await greeted(host)  # after a connection that was used the distance is small again
    assert time.monotonic() - started < 0.5
    again.close()


@pytest.mark.parametrize("listening", [True, False])
async def test_it_gives_up(bundle: GuestBundle, folder: Path, host: RawHost, listening: bool) -> None:
    place = host.place if listening else new_place(folder)
    started = time.monotonic()
    async with guest_process(bundle, folder, "--connect", place.option, "--give-up-s", "0.5") as endpoint:
        while endpoint.process.returncode is None:
            if not listening:
                assert await endpoint.exit_code() == 1
                break
            accepting = asyncio.ensure_future(host.accept())
            exiting = asyncio.ensure_future(endpoint.exit_code())
            await asyncio.wait((accepting, exiting), return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                accepting.result().close()
            else:
                accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            if exiting.done():
                assert exiting.result() == 1
            else:
                exiting.cancel()
        assert 0.4 < time.monotonic() - started < 6
        assert f"giving up on {place.option}: " in endpoint.errors()


async def test_100_connections_leak_nothing(lone: Endpoint, host: RawHost, folder: Path) -> None:
    (folder / "source").write_bytes(bytes(5 * MIB))
    counts = []
    for number in range(100):
        peer = await greeted(host)
        await peer.send(command("cat", flags=m.STDIN_STREAM | (m.PTY if number % 2 else 0)), 1)
        await peer.send(m.ReadFile(f"{folder}/source", m.UNLIMITED), 2)
        await peer.send(m.WriteFile(f"{folder}/new", 0, 0o600, ""), 3)
        await peer.expect(m.Started, 1)
        counts.append(descriptors(lone.pid))
        peer.close()
    peer = await greeted(host)
    await pong(peer)
    peer.close()
    assert max(counts[-10:]) <= max(counts[:10]) + 2
    assert not (folder / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_guest_and_all_it_started(served: Endpoint, host: RawHost, number: int) -> None:
    peer = await greeted(host)
    pids = await family(peer)
    served.process.send_signal(number)
    assert await served.exit_code() == 0
    await until_dead(*pids)
    peer.close()


async def test_a_signal_while_nobody_is_connected(bundle: GuestBundle, folder: Path) -> None:
    async with guest_process(bundle, folder, "--connect", new_place(folder).option) as endpoint:
        await asyncio.sleep(0.5)
        endpoint.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert await endpoint.exit_code() == 0
        assert time.monotonic() - started < 2


async def test_a_command_that_outlives_its_connection_disturbs_no_other(lone: Endpoint, host: RawHost) -> None:
    """A tracer keeps the end of a killed command from the guest. The guest goes on without it after its limit, and what
    comes of the old command later must not be taken for the new one with the same number."""
    peer = await greeted(host)
    await peer.send(command("sleep 1000"), 1)
    pid = (await peer.expect(m.Started, 1)).pid
    tracer = await traced(pid)
    peer.close()
    again = await greeted(host)
    await again.send(command("read line; exit 6", flags=m.STDIN_STREAM), 1)
    await again.expect(m.Started, 1)
    await tracer.communicate(b"")
    await asyncio.sleep(0.3)
    await pong(again)
    await again.send(m.Stdin(m.LAST, b""), 1)
    assert (await again.expect(m.Result, 1)).exit_code == 6
    again.close()


async def test_a_signal_while_a_connection_is_wound_up(lone: Endpoint, host: RawHost) -> None:
    peer = await greeted(host)
    await peer.send(command("sleep 1000"), 1)
    tracer = await traced((await peer.expect(m.Started, 1)).pid)
    before = descriptors(lone.pid)
    peer.close()
    await until_settled(lone.pid, before - 1)
    lone.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    assert lone.process.returncode is None, "it still sees the command off"
    await tracer.communicate(b"")
    started = time.monotonic()
    assert await lone.exit_code() == 0
    assert time.monotonic() - started < 2
