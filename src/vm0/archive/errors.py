"""What can go wrong with an archive, as a closed set of reasons."""

from __future__ import annotations

import enum


class ArchiveReason(enum.Enum):
    CORRUPT = "corrupt"  #: not a gzip stream or not a tar; the same bytes will fail again
    TRUNCATED = "truncated"  #: the stream ended cleanly, but before the archive did
    LIMIT = "limit"  #: more bytes, entries or expansion than allowed
    CHANGED = "changed"  #: a file is not any more what the scan announced


class ArchiveError(Exception):
    """An archive that cannot be made or unpacked. Never worth a retry with the same bytes."""

    def __init__(self, reason: ArchiveReason, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.reason, self.hint = reason, hint


class SourceError(Exception):
    """Reading the archive's bytes failed (network, disk); the archive itself may be fine: worth a retry."""
