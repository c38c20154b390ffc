"""A real host and guests that lie, break off, flood or say nothing. The guest is the untrusted side: whatever it does,
each call ends with the right error within its limit, and the host's memory and disk stay within what was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.vsock.endpoints import Peer, dialled
from tests.vsock.observation import MIB, SLOWER, peak_rss_bytes, reset_peak, rss_bytes
from tests.vsock.places import NOBODY, Place, new_place
from vm0.sandbox import Reason, SandboxOperationError
from vm0.sandbox.testing import sh
from vm0.vsock_host import GuestClient, GuestListener, HandshakeError, UnixAddress, client, files, process
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.framing import frame_header

TOKEN, BUILD = b"token", "build"
READY = m.Ready(m.VERSION, bytes(16), TOKEN, BUILD)
RESULT = m.Result(m.EXITED, 0, 0, 1, 1, 1, 1, 0, 0, 0, "")
STAT = m.FileStat(m.KIND_FILE, 0o644, 0, 0, 5, 0, "")


def raw(message: Message, seq: int, type: int | None = None) -> bytes:
    payload = message.encode()
    return frame_header(message.TYPE if type is None else type, seq, len(payload)) + payload


@pytest.fixture
def place(folder: Path) -> Place:
    return new_place(folder)


@pytest.fixture
async def listener(place: Place) -> AsyncIterator[GuestListener]:
    async with GuestListener(place.address, token=TOKEN, build=BUILD) as listener:
        yield listener


async def shaken(peer: Peer) -> None:
    """The guest's part of a handshake."""
    await peer.send(READY, 0)
    seq, message = await peer.receive()
    assert isinstance(message, m.Ping)
    await peer.send(m.Pong(), seq)


BAD_HANDSHAKES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "nobody"),
    "half-a-frame": (raw(READY, 0)[:7], "nobody"),
    "garbage": (b"GET / HTTP/1.1\r\n\r\n", "protocol error: frame body"),
    "zeros": (bytes(100), "protocol error: frame body of 0 bytes"),
    "token": (raw(m.Ready(m.VERSION, bytes(16), b"wrong", BUILD), 0), "wrong token"),
    "no-token": (raw(m.Ready(m.VERSION, bytes(16), b"", BUILD), 0), "wrong token"),
    "build": (raw(m.Ready(m.VERSION, bytes(16), TOKEN, "older"), 0), "build 'older', this host needs 'build'"),
    "version": (raw(m.Ready(2, bytes(16), TOKEN, BUILD), 0), "speaks version 2"),
    "not-ready": (raw(m.Pong(), 1), "ready must be the first"),
    "ready-twice": (raw(READY, 0) * 2, "come once"),
    "no-pong": (raw(READY, 0), "nobody"),
    "wrong-seq": (raw(READY, 0) + raw(m.Pong(), 77), "no open operation"),
    "unknown-type": (raw(READY, 0) + raw(m.Ping(), 1, type=0x7E), "unknown message type 0x7E"),
    "host-message": (raw(READY, 0) + raw(m.Shutdown(), 1), "wrong side"),
}
BAD_ANSWERS: dict[str, tuple[bytes, str]] = {
    "wrong-answer": (raw(m.Done(), 1), "does not answer ping"),
    "refusal": (raw(m.Error(1, "no"), 1), "no [internal]"),
    "no-answer": (b"", "nobody"),
}


@pytest.mark.parametrize("ending", ["silence", "end"])
@pytest.mark.parametrize("what", BAD_HANDSHAKES)
async def test_a_bad_handshake_lets_the_right_guest_in(
    listener: GuestListener, place: Place, what: str, ending: str
) -> None:
    stream, _ = BAD_HANDSHAKES[what]
    bad = await dialled(place)
    with contextlib.suppress(ConnectionError):
        await bad.send_bytes(stream)
    if ending == "end":
        bad.sock.shutdown(socket.SHUT_WR)
    good = await dialled(place)
    accepting = asyncio.create_task(listener.accept(10))
    await shaken(good)
    guest = await accepting
    pinging = asyncio.create_task(guest.ping())
    seq, _message = await good.receive()
    await good.send(m.Pong(), seq)
    await pinging
    guest.close()
    bad.close()
    good.close()


@pytest.mark.parametrize("what", BAD_HANDSHAKES)
async def test_a_bad_handshake_is_the_reason_that_is_told(listener: GuestListener, place: Place, what: str) -> None:
    stream, why = BAD_HANDSHAKES[what]
    bad = await dialled(place)
    with contextlib.suppress(ConnectionError):
        await bad.send_bytes(stream)
    started = time.monotonic()
    with pytest.raises(HandshakeError) as caught:
        await listener.accept(0.3)
    assert time.monotonic() - started < 2
    assert why in str(caught.value)
    bad.close()


@pytest.mark.parametrize("what", BAD_ANSWERS)
async def test_a_bad_answer_to_the_first_ping(listener: GuestListener, place: Place, what: str) -> None:
    stream, why = BAD_ANSWERS[what]
    bad = await dialled(place)
    await bad.send(READY, 0)
    await bad.expect(m.Ping, 1)
    await bad.send_bytes(stream)
    with pytest.raises(HandshakeError) as caught:
        await listener.accept(0.3)
    assert why in str(caught.value)
    bad.close()


async def test_an_early_end_is_told(listener: GuestListener, place: Place) -> None:
    (await dialled(place)).close()
    with pytest.raises(HandshakeError, match="went away before it said ready"):
        await listener.accept(0.3)


async def test_only_so_many_wait_in_their_handshake(listener: GuestListener, place: Place) -> None:
    silent = [await dialled(place) for _ in range(8)]
    one_more = await dialled(place)
    await one_more.ended()
    with pytest.raises(HandshakeError, match="too many connections"):
        await listener.accept(0.2)
    silent.pop().close()
    with pytest.raises(HandshakeError, match="went away"):
        await listener.accept(0.2)
    good = await dialled(place)
    await shaken(good)
    (await listener.accept(5)).close()
    for peer in (*silent, one_more, good):
        peer.close()


async def test_one_guest_and_no_other(listener: GuestListener, place: Place) -> None:
    first, second = await dialled(place), await dialled(place)
    await shaken(first)
    guest = await listener.accept(5)
    await second.send(READY, 0)
    with contextlib.suppress(ConnectionError):
        seq, _ = await second.receive()
        await second.send(m.Pong(), seq)
    await second.ended()
    with pytest.raises(NOBODY):
        await dialled(place)
    assert not guest.is_lost
    guest.close()
    first.close()
    second.close()


async def test_a_guest_that_nobody_waits_for_is_dropped(place: Place) -> None:
    async with GuestListener(place.address, token=TOKEN) as listener:
        peer = await dialled(place)
        await shaken(peer)
        with contextlib.suppress(*NOBODY):  # the listener closes its door once somebody is in
            while True:
                (await dialled(place)).close()
                await asyncio.sleep(0.01)
    await asyncio.wait_for(peer.ended(), 2)
    peer.close()
    assert listener is not None


async def test_no_descriptors_left_is_no_end_of_listening(listener: GuestListener, place: Place) -> None:
    """Accepting fails while there are none; whoever dialled waits and is let in when there are some again."""
    peer = await dialled(place)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        await asyncio.sleep(0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await shaken(peer)
    (await listener.accept(5)).close()
    peer.close()


async def test_a_path_that_the_kernel_does_not_take(folder: Path) -> None:
    with pytest.raises(HandshakeError, match="socket path of 1") as caught:
        async with GuestListener(UnixAddress(str(folder / ("x" * 120))), token=TOKEN):
            pass
    assert "107" in caught.value.hint


# after the handshake


@pytest.fixture
async def pair(listener: GuestListener, place: Place) -> AsyncIterator[tuple[GuestClient, Peer]]:
    """A client that has let the test's own guest in."""
    peer = await dialled(place)
    await shaken(peer)
    guest = await listener.accept(10)
    yield guest, peer
    guest.close()
    peer.close()


Call = Callable[[GuestClient], Awaitable[object]]


def run(guest: GuestClient) -> Awaitable[object]:
    return guest.exec(sh("true", stdout_limit=100))


async def streamed(guest: GuestClient) -> object:
    started = await guest.start_process(sh("true", stdout_limit=None))
    return await started.wait()


def read(guest: GuestClient) -> Awaitable[object]:
    return guest.read_file("/x", io.BytesIO(), limit=10)


def write(guest: GuestClient) -> Awaitable[object]:
    return guest.write_file("/x", bytes(10 * MIB))


def look(guest: GuestClient) -> Awaitable[object]:
    return guest.stat("/x")


def names(guest: GuestClient) -> Awaitable[object]:
    return guest.list_directory("/x")


ROW = ("n", m.KIND_FILE, 0, 0, 0, 0, 0, "")
PROTOCOL_BREACHES: dict[str, tuple[Call, Callable[[int], bytes], str]] = {
    "unknown-seq": (run, lambda seq: raw(RESULT, seq + 1), "no open operation"),
    "second-result": (run, lambda seq: raw(RESULT, seq + 1) + raw(RESULT, seq), "no open operation"),
    "unknown-type": (run, lambda seq: raw(m.Done(), seq, type=0x55), "unknown message type 0x55"),
    "seq-0": (run, lambda seq: raw(RESULT, 0), "seq 0"),
    "garbage": (run, lambda seq: b"\xff" * 64, "frame body"),
    "cut-payload": (run, lambda seq: frame_header(m.Result.TYPE, seq, 3) + b"abc", "early"),
    "long-payload": (run, lambda seq: frame_header(m.Started.TYPE, seq, 5) + b"abcde", "after the end"),
    "from-host": (run, lambda seq: raw(m.Cancel(), seq), "wrong side"),
    "pong-for-exec": (run, lambda seq: raw(m.Pong(), seq), "does not answer exec"),
    "data-for-exec": (run, lambda seq: raw(m.Data(1, b""), seq), "does not answer exec"),
    "strange-stream": (run, lambda seq: raw(m.Output(7, b"x"), seq), "does not answer exec"),
    "strange-end": (run, lambda seq: raw(m.Result(9, 0, 0, 1, 1, 1, 1, 0, 0, 0, ""), seq), "ended in way 9"),
    "over-the-limit": (run, lambda seq: raw(m.Output(1, bytes(101)), seq), "over 100 bytes of stream 1"),
    "over-the-limit-in-pieces": (run, lambda seq: raw(m.Output(1, bytes(60)), seq) * 2, "over 100 bytes"),
    "over-the-credit": (
        streamed,
        lambda seq: raw(m.Started(1), seq) + raw(m.Output(1, bytes(60_000)), seq) * 5,
        "60000 bytes sent with a credit of 22144",
    ),
    "result-for-read": (read, lambda seq: raw(RESULT, seq), "does not answer read_file"),
    "more-than-asked": (read, lambda seq: raw(STAT, seq) + raw(m.Data(0, bytes(11)), seq), "more of a file than"),
    "file-over-the-credit": (
        lambda guest: guest.read_file("/x", Stuck()),  # type: ignore[arg-type]
        lambda seq: raw(m.Data(0, bytes(MIB // 2)), seq) * 10,
        "with a credit of",
    ),
    "data-for-write": (write, lambda seq: raw(m.Data(0, b"x"), seq), "does not answer write_file"),
    "done-for-stat": (look, lambda seq: raw(m.Done(), seq), "does not answer stat"),
    "strange-kind": (look, lambda seq: raw(m.FileStat(9, 0, 0, 0, 0, 0, ""), seq), "a file of kind 9"),
    "strange-kind-in-list": (names, lambda seq: raw(m.Entries(1, (("n", 9, 0, 0, 0, 0, 0, ""),)), seq), "of kind 9"),
    "stat-for-list": (names, lambda seq: raw(STAT, seq), "does not answer list_directory"),
    "too-many-names": (names, lambda seq: raw(m.Entries(0, (ROW,) * 4096), seq) * 25, "over 100000 names"),
    "quiesced-for-ping": (GuestClient.ping, lambda seq: raw(m.Quiesced(0), seq), "Quiesced does not answer ping"),
    "pong-for-shutdown": (GuestClient.shutdown, lambda seq: raw(m.Pong(), seq), "Pong does not answer shutdown"),
}


class Stuck(io.RawIOBase):
    """A sink on a disk that hangs for a while."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        self.goes_on.wait(1.0)
        return len(data)


async def test_a_guest_endpoint_that_was_started_again_is_a_crash(pair: tuple[GuestClient, Peer]) -> None:
    """A VM's init does that on the same port: whatever ran before is gone."""
    guest, peer = pair
    calling = asyncio.ensure_future(run(guest))
    await peer.expect(m.Exec)
    await peer.send_bytes(raw(READY, 0))
    with pytest.raises(SandboxOperationError) as caught:
        await calling
    assert caught.value.reason is Reason.CRASHED and "started again" in await guest.lost()


@pytest.mark.parametrize("what", PROTOCOL_BREACHES)
async def test_a_broken_rule_ends_the_link_and_every_call(pair: tuple[GuestClient, Peer], what: str) -> None:
    guest, peer = pair
    call, stream, why = PROTOCOL_BREACHES[what]
    bystander = asyncio.create_task(guest.exec(sh("true")))
    await peer.expect(m.Exec)
    calling = asyncio.ensure_future(call(guest))
    seq, _ = await peer.receive()
    with contextlib.suppress(ConnectionError):
        await peer.send_bytes(stream(seq))
    async with asyncio.timeout(5):
        with pytest.raises(SandboxOperationError) as caught:
            await calling
        assert caught.value.reason is Reason.PROTOCOL
        assert why in str(caught.value) or why in await guest.lost()
        assert (await guest.lost()).startswith("protocol error")
        with pytest.raises(SandboxOperationError) as caught:
            await bystander
        assert caught.value.reason is Reason.PROTOCOL
        with pytest.raises(SandboxOperationError) as caught:
            await guest.ping()
        assert caught.value.reason is Reason.PROTOCOL
        with contextlib.suppress(TimeoutError):
            await peer.ended()


@pytest.mark.parametrize("half", [b"", raw(RESULT, 2)[:4], raw(RESULT, 2)[:30]], ids=["whole", "length", "payload"])
@pytest.mark.parametrize("call", [run, streamed, read, write, look, names, GuestClient.ping], ids=lambda f: f.__name__)
async def test_an_end_in_the_middle(pair: tuple[GuestClient, Peer], call: Call, half: bytes) -> None:
    guest, peer = pair
    calling = asyncio.ensure_future(call(guest))
    await peer.receive()
    await peer.send_bytes(half)
    peer.close()
    async with asyncio.timeout(5):
        with pytest.raises(SandboxOperationError) as caught:
            await calling
        assert caught.value.reason is Reason.CRASHED
        assert await guest.lost()


LIMITS = [(client, "PING_S"), (client, "ANSWER_S"), (client, "SHUTDOWN_S"), (process, "ANSWER_S")]


@pytest.mark.parametrize("beginning", [b"", raw(m.Pong(), 2)[:6]], ids=["silence", "half-a-frame"])
@pytest.mark.parametrize(
    "call",
    [
        lambda guest: guest.ping(0.2),
        lambda guest: guest.exec(sh("true", timeout_s=0.1, grace_s=0, drain_s=0)),
        streamed,
        read,
        write,
        look,
        names,
        GuestClient.quiesce,
    ],
    ids=["ping", "exec", "start", "read", "write", "stat", "list", "quiesce"],
)
async def test_silence_ends_by_a_limit(
    pair: tuple[GuestClient, Peer], call: Call, beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in LIMITS:
        monkeypatch.setattr(module, name, 0.2)
    monkeypatch.setattr(process, "MARGIN_S", 0.2)
    monkeypatch.setattr(files, "STALL_S", 0.2)
    monkeypatch.setattr(GuestClient._request, "__defaults__", (0.2,))
    guest, peer = pair
    calling = asyncio.ensure_future(call(guest))
    await peer.receive()
    await peer.send_bytes(beginning)
    async with asyncio.timeout(5):
        with pytest.raises(SandboxOperationError) as caught:
            await calling
    assert caught.value.reason is Reason.TIMEOUT
    assert not guest.is_lost


async def test_a_late_answer_is_dropped(pair: tuple[GuestClient, Peer]) -> None:
    guest, peer = pair
    with pytest.raises(SandboxOperationError):
        await guest.ping(0.05)
    late, _ = await peer.receive()
    pinging = asyncio.create_task(guest.ping())
    seq, _ = await peer.receive()
    await peer.send(m.Pong(), late)
    await peer.send(m.Pong(), seq)
    await pinging


async def test_a_reason_that_this_host_does_not_know(pair: tuple[GuestClient, Peer]) -> None:
    guest, peer = pair
    calling = asyncio.ensure_future(look(guest))
    seq, _ = await peer.receive()
    await peer.send(m.Error(200, "new"), seq)
    with pytest.raises(SandboxOperationError) as caught:
        await calling
    assert (caught.value.reason, caught.value.code) == (Reason.GUEST, "internal")


async def sent_quickly(peer: Peer, data: bytes, times: int) -> None:
    for _ in range(times):
        await peer.send_bytes(data)


async def test_single_bytes_cost_what_they_weigh(pair: tuple[GuestClient, Peer]) -> None:
    """A window of output in pieces of two bytes, on commands that nobody reads."""
    guest, peer = pair
    processes = []
    for _ in range(4):
        starting = asyncio.create_task(guest.start_process(sh("true", stdout_limit=None)))
        seq, _request = await peer.receive()
        await peer.send(m.Started(1), seq)
        processes.append((seq, await starting))
    before = rss_bytes(os.getpid())
    reset_peak(os.getpid())
    for seq, _process in processes:
        await sent_quickly(peer, raw(m.Output(1, b"ab"), seq) * 1024, m.OUTPUT_WINDOW // 2 // 1024)
    pinging = asyncio.create_task(guest.ping(30))
    seq, _request = await peer.receive()
    await peer.send(m.Pong(), seq)
    await pinging
    assert peak_rss_bytes(os.getpid()) - before < 12 * MIB
    assert len(await processes[0][1].stdout.read()) == m.OUTPUT_WINDOW


async def test_empty_output_is_no_end_and_costs_nothing(pair: tuple[GuestClient, Peer]) -> None:
    guest, peer = pair
    starting = asyncio.create_task(guest.start_process(sh("true", stdout_limit=None)))
    seq, _request = await peer.receive()
    await peer.send(m.Started(1), seq)
    started = await starting
    before = rss_bytes(os.getpid())
    await sent_quickly(peer, raw(m.Output(1, b""), seq) * 4096, 50)
    await peer.send(m.Output(1, b"text"), seq)
    assert await started.stdout.read() == b"text"
    assert rss_bytes(os.getpid()) - before < 8 * MIB
    await peer.send(RESULT, seq)
    assert await started.stdout.read() == b""


async def test_a_file_in_single_bytes_and_a_slow_disk(pair: tuple[GuestClient, Peer]) -> None:
    guest, peer = pair
    sink = Stuck()
    reading = asyncio.create_task(guest.read_file("/x", sink))  # type: ignore[arg-type]
    seq, _request = await peer.receive()
    await peer.send(STAT, seq)
    before = rss_bytes(os.getpid())
    reset_peak(os.getpid())
    await sent_quickly(peer, raw(m.Data(0, b"x"), seq) * 4096, 60)
    assert peak_rss_bytes(os.getpid()) - before < 12 * MIB
    sink.goes_on.set()
    await peer.send(m.Data(m.LAST, b"y"), seq)
    assert await reading == 60 * 4096 + 1


class Zeros(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a writable buffer
        return len(buffer)


async def test_credit_without_end_and_nothing_read(pair: tuple[GuestClient, Peer]) -> None:
    """The guest says it consumed everything, and reads nothing: what waits to be sent stays bounded."""
    guest, peer = pair
    writing = asyncio.create_task(guest.write_file("/x", Zeros()))  # type: ignore[arg-type]
    seq, _request = await peer.receive()
    before = rss_bytes(os.getpid())
    for _ in range(100):
        await peer.send(m.Credit(m.FILE, 2**32 - 1), seq)
    done, _ = await asyncio.wait([writing], timeout=0.5)
    assert not done
    assert rss_bytes(os.getpid()) - before < 16 * MIB
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert not guest.is_lost


async def test_a_flood_of_small_messages_does_not_stop_the_host(pair: tuple[GuestClient, Peer]) -> None:
    """Legal, useless and as many as fit: the host's loop must get to its other work in between."""
    guest, peer = pair
    running = asyncio.create_task(guest.exec(sh("true", stdin_stream=True)))
    seq, _request = await peer.receive()
    stop = threading.Event()
    block = raw(m.Credit(m.STDIN, 1), seq) * 4096
    peer.sock.setblocking(True)

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                peer.sock.sendall(block)

    thread = threading.Thread(target=flood)
    thread.start()
    worst_s = 0.0
    try:
        for _ in range(100):
            started = time.thread_time()  # of this thread: what else the machine does is no matter
            await asyncio.sleep(0)
            worst_s = max(worst_s, time.thread_time() - started)
    finally:
        stop.set()
        guest.close()
        await asyncio.to_thread(thread.join)
    print(f"the loop was held for {worst_s * 1000:.0f} ms at most")
    assert worst_s < 0.15 * SLOWER
    with pytest.raises(SandboxOperationError):
        await running
