"""Log files of runs on this host, each with a limit: what comes after it is counted, not kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType

from vm0.sandbox import OutputStream

log = logging.getLogger(__name__)


class BoundedLog:
    """A file of at most `limit_bytes` and one closing line. A full disk ends the writing, never the run."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path, self._room = path, limit_bytes
        self._discarded = 0
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            self._give_up(exc)

    def __enter__(self) -> BoundedLog:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._discarded:
            self._write(f"\n[{self._discarded} more bytes were not kept]\n".encode())
        self._close()

    def append(self, data: bytes) -> None:
        kept = data[: self._room]
        self._room -= len(kept)
        self._discarded += len(data) - len(kept)
        if kept:
            self._write(kept)

    async def copy(self, stream: OutputStream) -> None:
        """Read the stream to its end, whatever becomes of the file."""
        async for piece in stream:
            self.append(piece)

    def _write(self, data: bytes) -> None:
        try:
            while data and self._descriptor >= 0:
                data = data[os.write(self._descriptor, data) :]
        except OSError as exc:
            self._give_up(exc)

    def _give_up(self, exc: OSError) -> None:
        log.warning("%s cannot be written: %s", self._path, exc, extra={"action": "log_failed"})
        self._room = 0
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
