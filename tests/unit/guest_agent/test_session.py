from __future__ import annotations

import pathlib

import pytest

from vm0.guest_agent import session


@pytest.mark.parametrize(
    ("folder", "encoded"),
    [
        ("/home/user/workspace", "-home-user-workspace"),
        ("/a_b.c/d e", "-a-b-c-d-e"),
        ("/x/é", "-x--"),
    ],
)
def test_the_folder_of_a_project(folder: str, encoded: str) -> None:
    assert session.project_folder("/h", folder) == f"/h/.claude/projects/{encoded}"


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"type": "system", "subtype": "init", "session_id": "a-1"}, "a-1"),
        ({"type": "system", "subtype": "other", "session_id": "a-1"}, None),
        ({"type": "result", "session_id": "a-1"}, None),
        ({"type": "system", "subtype": "init"}, None),
        ({"type": "system", "subtype": "init", "session_id": 7}, None),
        ({"type": "system", "subtype": "init", "session_id": "../../etc/passwd"}, None),
        ({"type": "system", "subtype": "init", "session_id": ".."}, None),
        ({"type": "system", "subtype": "init", "session_id": "a/b"}, None),
    ],
)
def test_session_ids(event: dict[str, object], found: str | None) -> None:
    assert session.session_id_of(event) == found


def test_the_memory_folder_is_linked_once(tmp_path: pathlib.Path) -> None:
    home, memory = tmp_path / "home", tmp_path / "memory"
    assert not session.link_memory(str(home), "/w", str(memory))  # it does not exist
    memory.mkdir()
    assert session.link_memory(str(home), "/w", str(memory))
    link = home / ".claude/projects/-w/memory"
    assert link.is_symlink() and link.resolve() == memory
    assert not session.link_memory(str(home), "/w", str(memory))
