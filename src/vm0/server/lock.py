"""One server per state directory: an exclusive `flock` that the kernel releases however the holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib

from vm0.server.errors import ServerError


class StateLock:
    """Held from construction to `close`; raises ServerError naming the holder's pid."""

    def __init__(self, state_dir: pathlib.Path) -> None:
        path = state_dir / "server.lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise ServerError(f"cannot open {path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            pid = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise ServerError(
                f"another server (pid {pid}) is using {state_dir}",
                hint="stop it, or choose another directory with --state-dir",
            ) from exc
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the pid, which only serves people
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
