"""The real guest and a host that breaks the rules: the guest answers or closes, ends what runs, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vsock.endpoints import Endpoint, Peer, RawHost
from tests.vsock.observation import MIB, SLOWER, alive, peak_rss_bytes, reset_peak, rss_bytes, until_dead, until_idle
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.errors import REASON_NUMBERS
from vm0.vsock_proto.framing import frame_header

pytestmark = pytest.mark.host


def raw(message: Message, seq: int, type: int | None = None) -> bytes:
    payload = message.encode()
    return frame_header(message.TYPE if type is None else type, seq, len(payload)) + payload


def command(text: str, *, flags: int = 0, **changes: Any) -> m.Exec:
    fields: dict[str, Any] = {
        "flags": m.SHELL | flags,
        "argv": (text,),
        "env": (),
        "cwd": "",
        "user": "",
        "stdin": b"",
        "rows": 0,
        "columns": 0,
        "timeout_ms": 0,
        "grace_ms": 100,
        "drain_ms": 100,
        "stdout_limit": m.UNLIMITED,
        "stderr_limit": m.UNLIMITED,
    }
    return m.Exec(**fields | changes)


async def greeted(host: RawHost) -> Peer:
    peer = await host.accept()
    await peer.expect(m.Ready, 0)
    return peer


async def pong(peer: Peer, seq: int = 99) -> None:
    await peer.send(m.Ping(), seq)
    await peer.expect(m.Pong, seq)


async def test_an_unknown_type_is_answered_and_the_link_goes_on(lone: Endpoint, host: RawHost) -> None:
    peer = await greeted(host)
    await peer.send_bytes(raw(m.Ping(), 5, type=0x7E) + frame_header(0x60, 6, 3) + b"abc")
    for seq in (5, 6):
        assert (await peer.expect(m.Error, seq)).reason == REASON_NUMBERS["unknown_type"]
    await pong(peer)
    peer.close()


RUNNING = 1
BREACHES: dict[str, bytes] = {
    "garbage": b"\xff" * 64,
    "empty-frame": bytes(4),
    "huge-frame": (2**32 - 1).to_bytes(4, "big"),
    "cut-payload": frame_header(m.Exec.TYPE, 7, 2) + b"\0\0",
    "bomb": frame_header(m.Exec.TYPE, 7, 9) + b"\0" + b"\xff" * 8,
    "long-payload": frame_header(m.Ping.TYPE, 7, 1) + b"x",
    "not-utf-8": frame_header(m.WriteFile.TYPE, 7, 10) + b"\0\1/\0\0\0\0\0\1\xff",
    "seq-0": raw(m.Ping(), 0),
    "seq-in-use-by-ping": raw(m.Ping(), RUNNING),
    "seq-in-use-by-exec": raw(command("true"), RUNNING),
    "seq-in-use-by-file": raw(m.Stat("/", 1), RUNNING),
    "guest-message": raw(m.Pong(), 7),
    "ready": raw(m.Ready(m.VERSION, bytes(16), b"", ""), 0),
    "stdin-over-the-window": raw(m.Stdin(0, bytes(256 * 1024)), RUNNING) + raw(m.Stdin(0, b"x"), RUNNING) * 70_000,
}


@pytest.mark.parametrize("what", BREACHES)
async def test_a_broken_rule_closes_the_link_and_the_guest_comes_back(
    served: Endpoint, host: RawHost, what: str
) -> None:
    peer = await greeted(host)
    await peer.send(command("echo $$; exec sleep 1000", flags=m.STDIN_STREAM), RUNNING)
    pid = (await peer.expect(m.Started, RUNNING)).pid
    await peer.expect(m.Output, RUNNING)
    with contextlib.suppress(ConnectionError):
        await peer.send_bytes(BREACHES[what])
    await peer.ended()
    peer.close()
    again = await greeted(host)
    await pong(again)
    await until_dead(pid)
    assert "Traceback" not in served.errors()
    again.close()


async def test_messages_for_operations_that_are_over_are_ignored(lone: Endpoint, host: RawHost) -> None:
    peer = await greeted(host)
    for message in (
        m.Stdin(1, b"late"),
        m.Data(1, b"late"),
        m.Credit(1, 5),
        m.Signal(9),
        m.Resize(1, 1),
        m.Cancel(),
    ):
        await peer.send(message, 1234)
    await pong(peer)
    peer.close()


async def test_thousands_of_pings_and_nothing_read(lone: Endpoint, host: RawHost) -> None:
    """The guest stops reading when its answers pile up, and goes on when they are read."""
    peer = await greeted(host)
    await pong(peer)
    before = rss_bytes(lone.pid)
    reset_peak(lone.pid)
    loop = asyncio.get_running_loop()
    sent, block = 0, b"".join(raw(m.Ping(), seq) for seq in range(1, 5001))
    try:
        async with asyncio.timeout(10):
            for _ in range(1000):  # 5,000,000 pings are 45 MB
                async with asyncio.timeout(SLOWER):
                    await loop.sock_sendall(peer.sock, block)
                sent += 5000
    except TimeoutError:
        pass
    assert 0 < sent < 5_000_000, "the guest must push back"
    assert peak_rss_bytes(lone.pid) - before < 24 * MIB
    await until_idle(lone.pid, limit_s=5 * SLOWER)
    async with asyncio.timeout(20 * SLOWER):
        answers = 0
        while answers < sent * len(raw(m.Pong(), 1)):
            answers += len(await loop.sock_recv(peer.sock, MIB))
    peer.close()
    again = await greeted(host)
    await pong(again)
    again.close()


async def test_empty_pieces_cost_nothing(lone: Endpoint, host: RawHost, folder: Path) -> None:
    peer = await greeted(host)
    await peer.send(command("sleep 1000", flags=m.STDIN_STREAM), 1)
    await peer.send(m.WriteFile(f"{folder}/file", 0, 0o600, ""), 2)
    await peer.expect(m.Started, 1)
    before = rss_bytes(lone.pid)
    for _ in range(50):
        await peer.send_bytes(raw(m.Stdin(0, b""), 1) * 2048 + raw(m.Data(0, b""), 2) * 2048)
    await pong(peer)
    assert rss_bytes(lone.pid) - before < 4 * MIB
    await peer.send(m.Data(m.LAST, b"end"), 2)
    assert (await peer.expect(m.Written, 2)).size == 3
    peer.close()


async def test_input_after_the_last_and_for_who_has_closed(lone: Endpoint, host: RawHost) -> None:
    """Not written, but consumed: credit comes back, so that the sender is not stuck."""
    peer = await greeted(host)
    await peer.send(command("exec <&-; echo closed; sleep 1000", flags=m.STDIN_STREAM), 1)
    await peer.expect(m.Started, 1)
    await peer.expect(m.Output, 1)
    for _ in range(5):
        await peer.send(m.Stdin(0, bytes(200_000)), 1)
        total = 0
        while total < 200_000 - 65_536:
            total += (await peer.expect(m.Credit, 1)).amount
    peer.close()


async def test_half_a_frame_and_silence_holds_nothing_up(lone: Endpoint, host: RawHost) -> None:
    peer = await greeted(host)
    await peer.send(command("echo $$; sleep 0.3; echo end"), 1)
    await peer.expect(m.Started, 1)
    await peer.send_bytes(raw(m.Ping(), 9)[:5])
    assert (await peer.expect(m.Output, 1)).data
    assert (await peer.expect(m.Output, 1)).data == b"end\n"
    assert (await peer.expect(m.Result, 1)).ended == m.EXITED
    await peer.send_bytes(raw(m.Ping(), 9)[5:])
    await peer.expect(m.Pong, 9)
    peer.close()


async def test_restore_is_refused_by_what_is_no_machine(lone: Endpoint, host: RawHost) -> None:
    peer = await greeted(host)
    before = time.time()
    await peer.send(m.Restore(1, bytes(256), b"new", "UTC", "other", "", "", "", ""), 1)
    assert (await peer.expect(m.Error, 1)).reason == REASON_NUMBERS["permission"]
    assert time.time() - before < 60
    peer.close()
    again = await host.accept()
    assert (await again.expect(m.Ready, 0)).token == b""
    again.close()


async def test_a_process_that_is_gone_is_not_signalled(lone: Endpoint, host: RawHost) -> None:
    """Signals and input that cross the end of a command on the wire."""
    peer = await greeted(host)
    for seq in range(1, 60):
        await peer.send(command("exit 3", flags=m.STDIN_STREAM), seq)
        await peer.send_bytes(raw(m.Signal(0), seq) + raw(m.Stdin(1, b"x" * 10), seq) + raw(m.Cancel(), seq))
        message: Message = await peer.expect(m.Started, seq)
        while not isinstance(message, m.Result):
            _, message = await peer.receive()
        assert message.ended in (m.EXITED, m.CANCELLED)
    await pong(peer)
    assert alive(lone.pid)
    peer.close()
