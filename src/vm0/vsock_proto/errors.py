"""Errors of the wire protocol: Remote… is the peer's fault and ends the link, Local… is a bug of ours."""

from __future__ import annotations


class ProtocolError(Exception):
    """a rule of the wire protocol was broken"""


class RemoteProtocolError(ProtocolError):
    """the peer sent something illegal; the link must be closed"""


class GuestRestarted(RemoteProtocolError):
    """ready came once more (it must come once): the guest endpoint was started again"""

    def __init__(self) -> None:
        super().__init__((type(self).__doc__ or "").strip())


class LocalProtocolError(ProtocolError):
    """we were about to send something illegal; nothing was sent"""


# The closed set of reasons in an *error* message. A number is never reused; an unknown one reads as REASONS[1].
REASONS = {
    1: "internal",  # the guest's own failure; the text says what
    2: "unknown_type",  # a message type this side does not know
    3: "not_found",  # no such file, directory, user or operation
    4: "permission",
    5: "exists",
    6: "not_a_file",  # a directory, device, socket where a regular file was meant
    7: "no_space",
    8: "too_large",  # over a limit that the request or the guest sets
    9: "cancelled",
    10: "quiesced",  # no new work now
    11: "busy",  # too many operations at once
    12: "invalid",  # the request contradicts itself or names something impossible
    13: "io",  # any other operating-system error
}
REASON_NUMBERS = {name: number for number, name in REASONS.items()}

MAX_TEXT = 4096  # bytes of the text of an *error* and of a result's diagnostic


def wire_text(text: str) -> str:
    """What of `text` the wire takes: file names in it may have bytes that are not UTF-8, and it may be too long."""
    return text.encode("utf-8", "backslashreplace")[:MAX_TEXT].decode("utf-8", "ignore")
