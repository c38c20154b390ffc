"""What is fuzzed: each target takes any bytes, raises AssertionError for a bug, and lets any other exception be one.

The guest's server runs with commands and transfers that do nothing, because the bytes decide what they would do to this
machine; all of the server, its link and its loop are real. So are all operations of the host's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

from tests.unit.vsock_proto.golden import EXAMPLES
from vm0.sandbox import SandboxOperationError
from vm0.sandbox.testing import sh
from vm0.vsock_guest import server as guest_server_module
from vm0.vsock_guest.files import Transfer
from vm0.vsock_guest.loop import Loop
from vm0.vsock_guest.server import Server, Settings
from vm0.vsock_host import GuestClient
from vm0.vsock_host.link import Link
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import REGISTRY, Message
from vm0.vsock_proto.connection import Connection, Unknown
from vm0.vsock_proto.errors import RemoteProtocolError
from vm0.vsock_proto.framing import HEADER, MIN_BODY, FrameDecoder, frame_header

READY = m.Ready(m.VERSION, bytes(16), b"", "")
READY_FRAME = b"".join(Connection("guest").frame(READY, 0))
LIMIT_S = 5.0


def decoder(data: bytes) -> None:
    """The first byte is the size of the reads."""
    if not data:
        return
    step, stream = data[0] + 1, data[1:]
    cutter, cut = FrameDecoder(64), 0
    try:
        for start in range(0, len(stream), step):
            for frame in cutter.feed(stream[start : start + step]):
                cut += HEADER + len(frame.payload)
    except RemoteProtocolError:
        return
    assert cut + cutter.pending == len(stream), "no byte is lost or made up"


def payload(data: bytes) -> None:
    """The first byte is the type. What is taken must come out the same."""
    cls = REGISTRY.get(data[0]) if data else None
    if cls is None:
        return
    try:
        message = cls.decode(data[1:])
    except RemoteProtocolError:
        return
    assert message.encode() == data[1:]
    assert cls.decode(message.encode()) == message
    assert len(repr(message)) < 40 * len(data) + 1000


def connections(data: bytes) -> None:
    """Both ends get the same bytes."""
    for role, greeting in (("guest", b""), ("host", READY_FRAME), ("host", b"")):
        with contextlib.suppress(RemoteProtocolError):
            for seq, message in Connection(role).receive_data(greeting + data):
                assert isinstance(message, Message | Unknown)
                assert seq or isinstance(message, m.Ready)


def frames_of(data: bytes) -> bytes:
    """Whole frames: type, a small seq and a length of up to 64 KiB from four bytes each, so that fuzzing gets past the
    framing. A type above the registry's is taken modulo, but for the last ones, which stay unknown."""
    numbers = sorted(REGISTRY)
    stream = bytearray()
    offset = 0
    while offset + 4 <= len(data):
        number, seq = data[offset], data[offset + 1] % 12
        size = int.from_bytes(data[offset + 2 : offset + 4], "big")
        body = data[offset + 4 : offset + 4 + size]
        offset += 4 + size
        kind = number if number >= 0xF0 else numbers[number % len(numbers)]
        stream += frame_header(kind, seq, len(body)) + body
    return bytes(stream)


def unframed(stream: bytes) -> bytes:
    """The data of which `frames_of` makes these frames; seeds for the fuzzer."""
    numbers = sorted(REGISTRY)
    data = bytearray()
    for frame in FrameDecoder().feed(stream):
        index = numbers.index(frame.type) if frame.type < 0xF0 else frame.type
        data += bytes((index, frame.seq % 12)) + len(frame.payload).to_bytes(2, "big") + frame.payload
    return bytes(data)


class _Command:
    """In the place of a command: answers, runs nothing, ends when it is told to."""

    def __init__(
        self, loop: Loop, request: m.Exec, containment: Any, send: Callable[[Message], None], finished: Any
    ) -> None:
        self.containment, self._send, self._finished = containment, send, finished
        self.pid = 0

    def start(self, identity: object) -> None:
        self._send(m.Started(1))

    def feed(self, message: m.Stdin) -> None:
        self._send(m.Credit(m.STDIN, len(message.data)))

    def credit(self, stream: int, amount: int) -> None:
        self._send(m.Output(m.STDOUT, bytes(min(amount, 10))))

    def signal(self, number: int) -> None:
        if number == 9:
            self.cancel()

    def resize(self, rows: int, columns: int) -> None:
        pass

    def cancel(self) -> None:
        self._send(m.Result(m.CANCELLED, -1, 9, 0, 0, 0, 0, 0, 0, 0, ""))
        self._finished(self)

    def kill(self) -> None:
        self._finished(self)


class _Transfer(Transfer):
    """In the place of a file transfer: touches no file."""

    def __init__(self, loop: Loop, request: Message, *rest: Any) -> None:
        super().__init__(loop, request, rest[-2], rest[-1])

    def start(self) -> None:
        self._send(m.Credit(m.FILE, 1))

    def feed(self, message: m.Data) -> None:
        if message.flags & m.LAST:
            self._send(m.Written(0))
            self._finished(self, None)

    def cancel(self) -> None:
        self._loop.submit(lambda: self._finished(self, None))


INERT: dict[str, Any] = {
    "Command": _Command,
    "WriteTransfer": _Transfer,
    "ReadTransfer": _Transfer,
    "StatTransfer": _Transfer,
    "ListTransfer": _Transfer,
    "_kill_orphans": lambda: None,  # they would be this process's own children
}


def guest_server(data: bytes) -> None:
    """A guest gets the frames and then the end. It must come to its own end in time and say only what is legal."""
    ended: list[str] = []
    ours, theirs = socket.socketpair()
    with mock.patch.multiple(guest_server_module, **INERT), theirs:
        loop = Loop()

        def detached(why: str, _served: bool) -> None:
            ended.append(why)
            loop.stop()

        server = Server(loop, Settings(token=b"", build=""), detached)
        ours.setblocking(False)
        server.attach(ours.detach())
        theirs.settimeout(LIMIT_S)
        theirs.sendall(frames_of(data)[:100_000])
        theirs.shutdown(socket.SHUT_WR)
        guard = loop.later(LIMIT_S, loop.stop)
        loop.run()
        assert ended and guard.call is not None, "the guest did not come to an end"
        said = b"".join(iter(lambda: _received(theirs), b""))
        loop.close()
    listener = Connection("host")
    for _seq, message in listener.receive_data(said):
        assert not isinstance(message, Unknown)


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:  # what the guest had not read is gone with it
        return b""


_runner: list[asyncio.Runner] = []  # one loop for all runs: making one costs more than most of them


def host_client(data: bytes) -> None:
    """A host with one operation of each kind under way gets the frames and then the end. Every operation must end, with
    its result or with the contract's error."""
    if not _runner:
        _runner.append(asyncio.Runner())
    _runner[0].run(_host_client(frames_of(data)))


def close_runner() -> None:
    while _runner:
        _runner.pop().close()


async def _host_client(stream: bytes) -> None:
    ours, theirs = socket.socketpair()
    escaped: list[object] = []  # from a callback of the loop, which would only log it
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: escaped.append(context))
    with theirs:
        theirs.settimeout(LIMIT_S)
        link = Link(ours)
        client = GuestClient(link)
        sink = io.BytesIO()
        calls: list[Coroutine[Any, Any, Any]] = [
            client.exec(sh("true", stdout_limit=100, stderr_limit=0)),
            _streamed(client),
            client.read_file("/x", sink, limit=1000),
            client.write_file("/x", bytes(300_000)),
            client.stat("/x"),
            client.list_directory("/x"),
            client.ping(),
            client.quiesce(),
            client.shutdown(),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)  # each has sent its request
        theirs.sendall(READY_FRAME + stream[:100_000])
        theirs.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LIMIT_S):
            await link.lost
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, SandboxOperationError):
            raise outcome
    assert len(sink.getvalue()) <= 1000
    assert link.operations == 0 and not escaped, escaped


async def _streamed(client: GuestClient) -> None:
    process = await client.start_process(sh("true", stdout_limit=None))
    async for piece in process.stdout:
        assert 0 < len(piece) <= m.OUTPUT_WINDOW
    await process.wait()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decoder": decoder,
    "payload": payload,
    "connections": connections,
    "guest_server": guest_server,
    "host_client": host_client,
}


def seeds(target: str) -> list[bytes]:
    """Every golden message, in the form that the target takes, and all of one side together."""
    frames = {sender: [] for sender in ("host", "guest", "both")}  # type: dict[str, list[bytes]]
    for number, (_, message) in enumerate(EXAMPLES):
        body = message.encode()
        frames[message.SENDER].append(frame_header(message.TYPE, number % 9 + 1, len(body)) + body)
    alone = [frame for group in frames.values() for frame in group]
    together = [b"".join(frames["host"] + frames["both"]), b"".join(frames["guest"] + frames["both"])]
    match target:
        case "decoder":
            return [b"\x07" + frame for frame in alone + together]
        case "payload":
            return [frame[4:5] + frame[4 + MIN_BODY :] for frame in alone]
        case "connections":
            return alone + together
        case _:
            return [unframed(stream) for stream in alone + together]
