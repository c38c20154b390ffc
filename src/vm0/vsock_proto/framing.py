"""Frames: `[4-byte length][1-byte type][4-byte seq][payload]`, big-endian; the length counts type, seq and payload."""

from __future__ import annotations

from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.messages import MAX_BODY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = 9
MIN_BODY = 5
READ_SIZE = 64 * 1024  # held by every link, and enough for all but bulk data
FRAMES_AHEAD = 8  # a link with larger frames gets room for so many: their cut-off ends are moved less often


class Frame:
    """One frame as it came. `payload` is a view that is only valid until the decoder is fed again."""

    __slots__ = ("payload", "seq", "type")

    def __init__(self, type: int, seq: int, payload: memoryview) -> None:
        self.type, self.seq, self.payload = type, seq, payload


def frame_header(type: int, seq: int, payload_size: int) -> bytes:
    """The nine bytes before a payload; raises LocalProtocolError for a frame above the limit."""
    body = MIN_BODY + payload_size
    if body > MAX_BODY:
        raise LocalProtocolError(f"frame body of {body} bytes; the limit is {MAX_BODY}")
    return body.to_bytes(4, "big") + type.to_bytes(1, "big") + seq.to_bytes(4, "big")


class FrameDecoder:
    """Cuts a byte stream into frames without copying payloads.

    Either `feed(bytes)`, or fill the view that `buffer()` gives, tell `received(count)` (no copy at all) and take the
    frames by `next_frame` until it gives None. Holds at most one frame and one read. After RemoteProtocolError the
    stream cannot be resynchronised: the frames before it were already
    handed over, every later call raises again.
    """

    def __init__(self, read_size: int = READ_SIZE) -> None:
        self._buffer = bytearray(read_size)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._error: RemoteProtocolError | None = None

    def buffer(self) -> memoryview:
        """Room for what comes next; at least as much as the current frame still needs. Ends the life of all frames."""
        needed = self._frame_size() or HEADER
        if self._start == self._end:
            self._start = self._end = 0
        if needed > len(self._buffer):  # at most a few times in the life of a link
            grown = bytearray(max(needed, min(needed * FRAMES_AHEAD, MAX_BODY)))
            grown[: self._end - self._start] = self._view[self._start : self._end]
            self._adopt(grown)
        elif self._start and (
            len(self._buffer) - self._start < needed or len(self._buffer) - self._end < len(self._buffer) // 4
        ):  # from the start there is nothing to move: a frame that drips in would be copied for each byte
            size = self._end - self._start
            self._view[:size] = self._view[self._start : self._end]  # moves what overlaps, too; no third copy
            self._start, self._end = 0, size
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were put at the start of the last `buffer()`."""
        self._end += count

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """The frames that are complete with `data`; each is valid until the next one is asked for."""
        view = memoryview(data)
        while view:
            room = self.buffer()
            taken = min(len(room), len(view))
            room[:taken] = view[:taken]
            self.received(taken)
            view = view[taken:]
            while (frame := self.next_frame()) is not None:
                yield frame

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None. Raises RemoteProtocolError for an impossible length."""
        size = self._frame_size()
        if size is None or self._end - self._start < size:
            return None
        start = self._start
        self._start += size
        header = self._view[start : start + HEADER]
        return Frame(header[4], int.from_bytes(header[5:9], "big"), self._view[start + HEADER : start + size])

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame: the stream must not end while there are any."""
        return self._end - self._start

    def _frame_size(self) -> int | None:
        if self._error is not None:
            raise self._error
        if self._end - self._start < 4:
            return None
        body = int.from_bytes(self._view[self._start : self._start + 4], "big")
        if not MIN_BODY <= body <= MAX_BODY:
            self._error = RemoteProtocolError(f"frame body of {body} bytes is outside {MIN_BODY}..{MAX_BODY}")
            raise self._error
        return 4 + body

    def _adopt(self, grown: bytearray) -> None:
        size = self._end - self._start
        self._buffer, self._view = grown, memoryview(grown)
        self._start, self._end = 0, size
