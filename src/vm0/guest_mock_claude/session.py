"""The session's history file, where the real CLI keeps it: `$HOME/.claude/projects/<encoded cwd>/<session>.jsonl`."""

from __future__ import annotations

import os
import re
import sys


class UnknownSessionError(Exception):
    """there is no history for the session that should be resumed"""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"No conversation found with session ID: {session_id}")


def encode_folder(cwd: str) -> str:
    """`/home/user/my_app` -> `-home-user-my-app`: one hyphen for every character that is no ASCII letter or digit."""
    return re.sub(r"[^A-Za-z0-9]", "-", cwd)


def is_safe_id(session_id: str) -> bool:
    """Whether the id is one file name and nothing else."""
    return bool(session_id) and session_id not in (".", "..") and session_id.isprintable() and "/" not in session_id


def new_session_id() -> str:
    """`mock-` and a version 7 UUID, so that ids sort by time."""
    import time

    random = int.from_bytes(os.urandom(10), "big")
    number = (time.time_ns() // 1_000_000) << 80 | 7 << 76 | (random >> 68) << 64 | 2 << 62 | random & (2**62 - 1)
    digits = f"{number:032x}"
    return f"mock-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Session:
    """An id and its open history, appended to line by line."""

    def __init__(self, session_id: str, fd: int | None) -> None:
        self.id = session_id
        self._fd = fd

    def record(self, line: bytes) -> None:
        if self._fd is not None:
            write_all(self._fd, line)


def start_session(home: str, cwd: str, session_id: str | None = None) -> Session:
    """A new session. Without a writable history the CLI works on, as the real one does."""
    session_id = session_id or new_session_id()
    path = history_path(home, cwd, session_id)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return Session(session_id, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        sys.stderr.write(f"mock-claude: no history will be written: {exc}\n")
        return Session(session_id, None)


def resume_session(home: str, cwd: str, session_id: str) -> Session:
    """:raises UnknownSessionError: no history with that id, or one that cannot be appended to."""
    if not is_safe_id(session_id):
        raise UnknownSessionError(session_id)
    try:
        fd = os.open(history_path(home, cwd, session_id), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        raise UnknownSessionError(session_id) from None
    return Session(session_id, fd)


def history_path(home: str, cwd: str, session_id: str) -> str:
    return os.path.join(home, ".claude", "projects", encode_folder(cwd), f"{session_id}.jsonl")


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
