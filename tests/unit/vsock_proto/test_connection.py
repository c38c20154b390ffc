"""One link: the two ends understand each other however the bytes are cut, and no broken rule is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vsock_proto.golden import EXAMPLES
from tests.unit.vsock_proto.strategies import READY, SEQS, chunks_of, sent_by
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import REGISTRY, Message
from vm0.vsock_proto.connection import Connection, Unknown
from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.framing import frame_header

FIRST = m.Ready(m.VERSION, bytes(16), b"token", "build")
Traffic = list[tuple[int, Message]]


def raw(message: Message, seq: int, type: int | None = None) -> bytes:
    """A frame, legal or not, without asking a connection."""
    payload = message.encode()
    return frame_header(message.TYPE if type is None else type, seq, len(payload)) + payload


READY_FRAME = raw(FIRST, 0)


def taken(connection: Connection, chunks: Iterable[bytes]) -> Traffic:
    """All messages, each copied out of the buffer."""
    seen: Traffic = []
    for chunk in chunks:
        for seq, message in connection.receive_data(chunk):
            assert isinstance(message, Message)
            if isinstance(message, m.Data):
                message = m.Data(message.flags, bytes(message.data))
            seen.append((seq, message))
    return seen


def connected(role: str) -> Connection:
    """An end whose peer has said ready, if it has to."""
    connection = Connection(role)
    if role == "host":
        list(connection.receive_data(READY_FRAME))
    return connection


def each_byte(data: bytes) -> Iterator[bytes]:
    return (data[n : n + 1] for n in range(len(data)))


@pytest.mark.parametrize("sender", ["host", "guest"])
def test_all_messages_whole_byte_by_byte_and_at_every_split(sender: str) -> None:
    receiver = {"host": "guest", "guest": "host"}[sender]
    traffic = [(seq, message) for seq, message in EXAMPLES if message.SENDER in (sender, "both")]
    speaker = Connection(sender)
    data = b"".join(b"".join(speaker.frame(message, seq)) for seq, message in traffic)
    assert taken(Connection(receiver), [data]) == traffic
    assert taken(Connection(receiver), each_byte(data)) == traffic
    for place in range(len(data) + 1):
        assert taken(Connection(receiver), [data[:place], data[place:]]) == traffic


@settings(max_examples=200)
@given(data=st.data(), ready=READY)
def test_random_traffic_both_ways(data: st.DataObject, ready: m.Ready) -> None:
    host, guest = Connection("host"), Connection("guest")
    answers: Traffic = [(0, ready), *data.draw(st.lists(st.tuples(SEQS, sent_by("guest")), max_size=6))]
    requests: Traffic = data.draw(st.lists(st.tuples(SEQS, sent_by("host")), max_size=6))
    for speaker, listener, traffic in ((guest, host, answers), (host, guest, requests)):
        stream = b"".join(b"".join(speaker.frame(message, seq)) for seq, message in traffic)
        assert taken(listener, data.draw(chunks_of(stream))) == traffic


@pytest.mark.parametrize("flags", [0, m.LAST])
@pytest.mark.parametrize("size", [0, 1, m.MAX_CHUNK])
def test_a_data_frame_is_the_message_without_a_copy(flags: int, size: int) -> None:
    data = memoryview(bytearray(size))
    header, body = Connection("host").data_frame(flags, data, 5)
    assert body is data
    assert header + bytes(body) == b"".join(Connection("host").frame(m.Data(flags, bytes(data)), 5))


def test_received_data_is_a_view() -> None:
    connection = connected("guest")
    [(_, message)] = connection.receive_data(raw(m.Data(0, b"abc"), 1))
    assert isinstance(message, m.Data) and isinstance(message.data, memoryview) and bytes(message.data) == b"abc"


@pytest.mark.parametrize("role", ["host", "guest"])
@pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda cls: cls.__name__)
def test_each_message_is_taken_from_its_sender_only(role: str, cls: type[Message]) -> None:
    seq, message = next(pair for pair in EXAMPLES if type(pair[1]) is cls)
    if cls.SENDER in (role, "both"):
        Connection(role).frame(message, seq)
    else:
        with pytest.raises(LocalProtocolError, match=f"a {role} does not send {cls.__name__}"):
            Connection(role).frame(message, seq)
    if cls is not m.Ready and cls.SENDER == role:
        with pytest.raises(RemoteProtocolError, match="wrong side"):
            list(connected(role).receive_data(raw(message, seq)))


@pytest.mark.parametrize("role", ["host", "guest"])
def test_an_unknown_type_comes_out_as_such_and_the_link_goes_on(role: str) -> None:
    sender = {"host": "guest", "guest": "host"}[role]
    known = m.Pong() if sender == "guest" else m.Ping()
    stream = raw(m.Stat("/", 0), 77, type=0x7E) + raw(known, 78)
    [(seq, unknown), following] = list(connected(role).receive_data(stream))
    assert isinstance(unknown, Unknown) and (seq, unknown.type) == (77, 0x7E)
    assert following == (78, known)


@pytest.mark.parametrize("type", [0x01, 0x02, 0x7E])
@pytest.mark.parametrize("role", ["host", "guest"])
def test_seq_0_is_for_ready_alone(role: str, type: int) -> None:
    with pytest.raises(RemoteProtocolError, match="seq 0"):
        list(connected(role).receive_data(raw(m.Ping(), 0, type=type)))


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (raw(m.Pong(), 1), "ready must be the first"),
        (raw(m.Pong(), 1, type=0x7E), "ready must be the first"),
        (raw(FIRST, 1), "ready with seq 1"),
        (READY_FRAME + READY_FRAME, "come once"),
        (READY_FRAME + raw(FIRST, 3), "come once"),
        (raw(m.Ready(2, bytes(16), b"", ""), 0), "speaks version 2 of the protocol, this host 1"),
        (raw(m.Ready(0, bytes(16), b"", ""), 0), "version 0"),
        (frame_header(0, 0, 0), "version 0"),
        (frame_header(0, 0, 2) + b"\0\2", "version 2"),
        (frame_header(0, 0, 30) + b"\0\2" + bytes(28), "version 2"),  # another layout behind the version
        (frame_header(0, 0, 2) + b"\0\1", "early"),
    ],
)
def test_ready_comes_first_once_and_in_our_version(stream: bytes, why: str) -> None:
    for chunks in ([stream], each_byte(stream)):
        with pytest.raises(RemoteProtocolError, match=why):
            taken(Connection("host"), chunks)


def test_a_guest_is_never_told_ready() -> None:
    with pytest.raises(RemoteProtocolError, match="ready"):
        list(Connection("guest").receive_data(READY_FRAME))


def test_a_role_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="neither"):
        Connection("server")


@settings(max_examples=400)
@given(data=st.data(), role=st.sampled_from(["host", "guest"]))
def test_whatever_comes_in_nothing_but_remote_errors_come_out(data: st.DataObject, role: str) -> None:
    """Frames with a right length and anything inside, changed legal frames, and noise."""
    connection = connected(role) if data.draw(st.booleans()) else Connection(role)
    for _ in range(data.draw(st.integers(1, 4))):
        number, seq = data.draw(st.sampled_from([*REGISTRY, 0x7E])), data.draw(st.integers(0, 2**32 - 1))
        payload = data.draw(
            st.one_of(
                st.binary(max_size=120),
                st.sampled_from([message.encode() for _, message in EXAMPLES]),
            )
        )
        stream = frame_header(number, seq, len(payload)) + payload
        if data.draw(st.booleans()):
            stream = data.draw(st.binary(max_size=30)) + stream
        try:
            for _seq, message in connection.receive_data(stream):
                assert isinstance(message, Message | Unknown)
        except RemoteProtocolError:
            return


def test_a_resumed_link_has_no_ready() -> None:
    """The guest of a snapshot said it before: the host speaks first, and a second *ready* is as illegal as ever."""
    done = raw(m.Done(), 1)
    assert taken(Connection("host", resumed=True), [done]) == [(1, m.Done())]
    with pytest.raises(RemoteProtocolError, match="ready"):
        taken(Connection("host", resumed=True), [READY_FRAME])
