"""One link, seen from one end: frames in, checked messages out, and the other way round. No I/O.

Laws, all from the table in `messages`: each message only from its sender; *ready* first, once, with seq 0; every other
seq from 1 up. Breaking one is a RemoteProtocolError and ends the link. A type that is not in the table comes out as
`Unknown`, which the guest answers with *error* `unknown_type`.
"""

from __future__ import annotations

from vm0.vsock_proto.codec import REGISTRY, Message
from vm0.vsock_proto.errors import GuestRestarted, LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.framing import Frame, FrameDecoder, frame_header
from vm0.vsock_proto.messages import VERSION, Data, Ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Unknown:
    """A frame of a type that this side does not know."""

    __slots__ = ("type",)

    def __init__(self, type: int) -> None:
        self.type = type


class Connection:
    """`role` is who we are: `host` or `guest`. Fill `decoder.buffer()`, then take `messages()`.

    `resumed`: the guest said *ready* before it was frozen in a snapshot, on a link that it takes for this one; the host
    speaks first then.
    """

    def __init__(self, role: str, *, resumed: bool = False) -> None:
        if role not in ("host", "guest"):
            raise ValueError(f"role {role!r} is neither host nor guest")
        self._role = role
        self._ready_due = role == "host" and not resumed
        self.decoder = FrameDecoder()

    def messages(self) -> Iterator[tuple[int, Message | Unknown]]:
        """`(seq, message)` for every complete frame; raises RemoteProtocolError after the last legal one."""
        while (frame := self.decoder.next_frame()) is not None:
            yield frame.seq, self._checked(frame)

    def receive_data(self, data: bytes) -> Iterator[tuple[int, Message | Unknown]]:
        """`messages()` of bytes that were not read into `decoder.buffer()`."""
        for frame in self.decoder.feed(data):
            yield frame.seq, self._checked(frame)

    def frame(self, message: Message, seq: int) -> tuple[bytes, bytes]:
        """Header and payload to send; raises LocalProtocolError for a message that is not ours to send."""
        if message.SENDER not in (self._role, "both"):
            raise LocalProtocolError(f"a {self._role} does not send {type(message).__name__}")
        payload = message.encode()
        return frame_header(message.TYPE, seq, len(payload)), payload

    def data_frame(self, flags: int, data: bytes | memoryview, seq: int) -> tuple[bytes, bytes | memoryview]:
        """The frame of a *data* message around `data` as it is, without a copy."""
        return frame_header(Data.TYPE, seq, 1 + len(data)) + bytes((flags,)), data

    def _checked(self, frame: Frame) -> Message | Unknown:
        cls = REGISTRY.get(frame.type)
        if self._ready_due or cls is Ready:
            self._check_ready(frame, cls)
        elif frame.seq == 0:
            raise RemoteProtocolError(f"type 0x{frame.type:02X} with seq 0")
        if cls is None:
            return Unknown(frame.type)
        if cls.SENDER == self._role:
            raise RemoteProtocolError(f"{cls.__name__} from the wrong side")
        if cls is Data:  # a view, not a copy: valid until more is read, so whoever keeps it must copy it
            return Data.decode_view(frame.payload)
        return cls.decode(frame.payload)

    def _check_ready(self, frame: Frame, cls: type[Message] | None) -> None:
        if not self._ready_due:
            raise GuestRestarted
        if cls is not Ready:
            raise RemoteProtocolError("ready must be the first message")
        if frame.seq != 0:
            raise RemoteProtocolError(f"ready with seq {frame.seq}")
        # The version stands first and is read before the rest, which another version may lay out differently.
        version = int.from_bytes(frame.payload[:2], "big")
        if version != VERSION:
            raise RemoteProtocolError(f"the guest speaks version {version} of the protocol, this host {VERSION}")
        self._ready_due = False
