"""Credit: how much of a stream may be under way. One window per stream and direction; pure counting."""

from __future__ import annotations

from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError


class SendWindow:
    """The sender's side: what may still be sent."""

    __slots__ = ("available",)

    def __init__(self, window: int) -> None:
        self.available = window

    def spend(self, size: int) -> None:
        if size > self.available:
            raise LocalProtocolError(f"{size} bytes sent with a credit of {self.available}")
        self.available -= size

    def grant(self, size: int) -> None:
        """Credit came in. More than was ever taken is a lie of the peer, but harmless: it is its own memory."""
        self.available = min(self.available + size, 2**62)


class ReceiveWindow:
    """The receiver's side: what the peer may still send, and when to give credit back."""

    __slots__ = ("_consumed", "_outstanding", "_window")

    def __init__(self, window: int) -> None:
        self._window = self._outstanding = window
        self._consumed = 0

    def received(self, size: int) -> None:
        """Data came in; raises RemoteProtocolError when the peer had no credit for it."""
        if size > self._outstanding:
            raise RemoteProtocolError(f"{size} bytes sent with a credit of {self._outstanding}")
        self._outstanding -= size

    def consumed(self, size: int) -> int:
        """Data was used up; returns the credit to send now: 0, or all of it once it is a quarter of the window."""
        self._consumed += size
        if self._consumed * 4 < self._window:
            return 0
        credit, self._consumed = self._consumed, 0
        self._outstanding += credit
        return credit
