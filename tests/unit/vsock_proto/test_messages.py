"""Payloads: every message there and back, and nothing but the whole of one is taken."""

from __future__ import annotations

import gc
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vsock_proto.golden import EXAMPLES, FILE, frame_of
from tests.unit.vsock_proto.strategies import messages_of
from vm0.vsock_proto import codec
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import REGISTRY, Message
from vm0.vsock_proto.connection import Connection
from vm0.vsock_proto.documentation import wire_page
from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.framing import HEADER

ALL = pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda cls: cls.__name__)
EXAMPLE_OF = {type(message): message for _, message in EXAMPLES}
OPEN_ENDED = {cls for cls in REGISTRY.values() if cls.FIELDS and cls.FIELDS[-1][1].kind == "bytes to the end"}
HUGE = (2**32 - 1).to_bytes(4, "big")


@ALL
@given(data=st.data())
def test_round_trip(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(cls))
    payload = message.encode()
    assert cls.decode(payload) == message
    assert cls.decode(memoryview(bytearray(payload))) == message


@ALL
def test_every_prefix_is_refused(cls: type[Message]) -> None:
    payload = EXAMPLE_OF[cls].encode()
    fixed = len(payload) - len(getattr(EXAMPLE_OF[cls], "data", b"")) if cls in OPEN_ENDED else len(payload)
    for size in range(fixed):
        with pytest.raises(RemoteProtocolError, match=r"early|items in"):
            cls.decode(payload[:size])


@ALL
def test_bytes_after_the_end_are_refused(cls: type[Message]) -> None:
    if cls in OPEN_ENDED:
        assert cls.decode(EXAMPLE_OF[cls].encode() + b"\0") != EXAMPLE_OF[cls]
    else:
        with pytest.raises(RemoteProtocolError, match="1 bytes after the end"):
            cls.decode(EXAMPLE_OF[cls].encode() + b"\0")


@ALL
@given(payload=st.binary(max_size=400))
def test_random_payloads_are_taken_or_refused(cls: type[Message], payload: bytes) -> None:
    try:
        message = cls.decode(payload)
    except RemoteProtocolError:
        return
    assert message.encode() == payload  # one value, one form


@ALL
@given(data=st.data())
def test_changed_payloads_are_taken_or_refused(cls: type[Message], data: st.DataObject) -> None:
    payload = bytearray(data.draw(messages_of(cls)).encode())
    for place in data.draw(st.lists(st.integers(0, max(0, len(payload) - 1)), max_size=4)) if payload else []:
        payload[place] = data.draw(st.integers(0, 255))
    try:
        assert cls.decode(memoryview(payload)).encode() == payload
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    ("cls", "payload"),
    [
        (m.Exec, b"\0" + HUGE),
        (m.Exec, b"\0" + (65536).to_bytes(4, "big")),
        (m.Exec, b"\0" + (65537).to_bytes(4, "big") + bytes(400_000)),
        (m.Exec, b"\0" + (1).to_bytes(4, "big") + HUGE + bytes(100)),
        (m.Exec, b"\0" + (1).to_bytes(4, "big") + m.MAX_BODY.to_bytes(4, "big") + bytes(100)),
        (m.Exec, b"\0" + bytes(4) + HUGE),
        (m.Entries, b"\0" + HUGE + bytes(100)),
        (m.Entries, b"\0" + (4096).to_bytes(4, "big") + bytes(4096)),
        (m.Stat, b"\xff\xff" + bytes(100)),
        (m.Ready, b"\0\1" + bytes(16) + b"\xff" + bytes(255)),
    ],
)
def test_announced_sizes_cost_nothing(cls: type[Message], payload: bytes) -> None:
    """A length or count that the payload does not hold is refused before memory is taken for it."""
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            cls.decode(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * 1024


@pytest.mark.parametrize(
    ("field", "fits", "too_much"),
    [
        (codec.uint(8), 255, 256),
        (codec.uint(16), 0, -1),
        (codec.uint(64), 2**64 - 1, 2**64),
        (codec.sint(32), -(2**31), -(2**31) - 1),
        (codec.sint(32), 2**31 - 1, 2**31),
        (codec.fixed(3), b"abc", b"ab"),
        (codec.fixed(3), b"abc", b"abcd"),
        (codec.blob(8, 4), b"abcd", b"abcde"),
        (codec.text(8, 4), "üü", "üüü"),
        (codec.text(8, 4), "a", "\ud800"),
        (codec.text(8, 4), "a", "\udcff"),
        (codec.text(8, 4, bytes_names=True), "\udcff", "\ud800"),
        (codec.sequence(2, codec.uint(8)), (1, 2), (1, 2, 3)),
        (codec.sequence(2, codec.uint(8)), (1, 255), (1, 256)),
    ],
    ids=lambda value: value.kind if isinstance(value, codec.Field) else None,
)
def test_values_at_and_over_the_limit_of_a_field(field: codec.Field, fits: object, too_much: object) -> None:
    reader = codec.Reader(field.encode(fits))
    assert field.decode(reader) == fits and not reader.remaining
    with pytest.raises(LocalProtocolError):
        field.encode(too_much)


@pytest.mark.parametrize(
    ("field", "payload"),
    [
        (codec.blob(8, 4), b"\x05abcde"),
        (codec.text(8, 9), b"\x02\xc3("),
        (codec.text(8, 9), b"\x03\xed\xa0\x80"),
        (codec.text(8, 9, bytes_names=True), b"\x0a0123456789"),
        (codec.sequence(2, codec.uint(8)), b"\0\0\0\x03abc"),
    ],
    ids=lambda value: value.kind if isinstance(value, codec.Field) else None,
)
def test_received_values_over_the_limit_of_a_field(field: codec.Field, payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        field.decode(codec.Reader(payload))


def test_a_message_takes_exactly_its_fields() -> None:
    assert m.Credit(1, 2) == m.Credit(stream=1, amount=2) == m.Credit(1, amount=2)
    for arguments, keywords in [((1,), {}), ((1, 2, 3), {}), ((1,), {"stream": 2}), ((1, 2), {"other": 3})]:
        with pytest.raises(TypeError, match="Credit takes stream, amount"):
            m.Credit(*arguments, **keywords)
    assert m.Ping() != m.Pong() and m.Credit(1, 2) != m.Credit(1, 3)


def test_a_repr_does_not_show_payload_bytes() -> None:
    assert repr(m.Output(1, b"secret")) == "Output(stream=1, data=<6 bytes>)"


def test_a_number_is_given_once() -> None:
    with pytest.raises(ValueError, match="0x01 is taken"):

        @codec.message(0x01, "host")
        class _Second(Message):
            """Never registered."""


def test_every_message_is_in_the_golden_file_and_has_its_bytes() -> None:
    """A change here is a change of the wire: see golden.py."""
    golden = json.loads(FILE.read_text())
    assert golden == {type(message).__name__: frame_of(message, seq).hex() for seq, message in EXAMPLES}
    assert list(golden) == [cls.__name__ for _, cls in sorted(REGISTRY.items())]


@pytest.mark.parametrize(("seq", "message"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_golden_bytes_are_understood(seq: int, message: Message) -> None:
    raw = bytes.fromhex(json.loads(FILE.read_text())[type(message).__name__])
    assert REGISTRY[raw[4]].decode(raw[HEADER:]) == message
    receiver = Connection("guest" if message.SENDER == "host" else "host")
    if not isinstance(message, m.Ready) and message.SENDER != "host":
        list(receiver.receive_data(frame_of(EXAMPLE_OF[m.Ready], 0)))
    assert [(s, r) for s, r in receiver.receive_data(raw)] == [(seq, message)]


def test_the_page_names_every_message_and_field() -> None:
    page = wire_page()
    for number, cls in REGISTRY.items():
        assert f"| 0x{number:02X} | {cls.SENDER} | {cls.__name__} |" in page
        assert f"**{cls.__name__}** (0x{number:02X}): {(cls.__doc__ or '').split()[0]}" in page
        row = next(line for line in page.splitlines() if line.startswith(f"| 0x{number:02X} |"))
        assert [f"`{name}` {field.kind}" for name, field in cls.FIELDS if f"`{name}` {field.kind}" not in row] == []
