"""The CLI's session: its id from the init event, and where Claude Code keeps its history."""

from __future__ import annotations

import os
import re

from vm0.contracts import names

_SESSION_ID = re.compile(names.SESSION_ID)


def session_id_of(event: dict[str, object]) -> str | None:
    """The id if this is the init event and the id is one that may stand in a file name."""
    if event.get("type") != "system" or event.get("subtype") != "init":
        return None
    found = event.get("session_id")
    return found if isinstance(found, str) and _SESSION_ID.fullmatch(found) else None


def project_folder(home: str, working_dir: str) -> str:
    """Claude Code's folder for a working directory: every character but letters and digits is a hyphen."""
    return os.path.join(home, ".claude", "projects", re.sub(r"[^A-Za-z0-9]", "-", working_dir))


def history_paths(home: str, working_dirs: list[str], session_id: str) -> list[str]:
    """Where the history may be: the CLI may know the working directory by either of its names."""
    return [os.path.join(project_folder(home, folder), f"{session_id}.jsonl") for folder in dict.fromkeys(working_dirs)]


def link_memory(home: str, working_dir: str, mount_path: str) -> bool:
    """Make the memory folder appear where Claude Code looks for it; False if something is there. Raises OSError."""
    if not os.path.isdir(mount_path):
        return False
    link = os.path.join(project_folder(home, working_dir), "memory")
    if os.path.lexists(link):
        return False
    os.makedirs(os.path.dirname(link), exist_ok=True)
    os.symlink(mount_path, link)
    return True
