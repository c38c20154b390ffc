"""Lines of /etc/hosts: ours are replaced, the image's stay."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.guest_common.names import hosts_text, replace

IMAGE = "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost\n\n10.1.1.1\tdb # the image's\n"


def test_our_lines_come_after_the_images() -> None:
    assert hosts_text(IMAGE, "vm0", "192.168.241.1") == (
        f"{IMAGE}127.0.1.1\tvm0 # vm0\n192.168.241.1\tapi.vm0.internal # vm0\n"
    )


def test_another_name_and_address_take_the_place_of_the_first() -> None:
    first = hosts_text(IMAGE, "vm0", "192.168.241.1")
    assert hosts_text(first, "other", "10.0.0.1") == hosts_text(IMAGE, "other", "10.0.0.1")


def test_what_is_not_said_stays() -> None:
    first = hosts_text(IMAGE, "vm0", "192.168.241.1")
    renamed = hosts_text(first, "other", "")
    assert sorted(renamed.splitlines()) == sorted(hosts_text(IMAGE, "other", "192.168.241.1").splitlines())
    moved = hosts_text(first, "", "10.0.0.1")
    assert sorted(moved.splitlines()) == sorted(hosts_text(IMAGE, "vm0", "10.0.0.1").splitlines())


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)))
def test_twice_is_once(lines: list[str]) -> None:
    once = hosts_text("\n".join(lines), "a", "1.2.3.4")
    assert hosts_text(once, "a", "1.2.3.4") == once


@pytest.mark.parametrize("before", ["nothing", "file", "link"])
def test_replace(tmp_path: Path, before: str) -> None:
    path, target = tmp_path / "name", tmp_path / "target"
    target.write_text("kept")
    if before == "file":
        path.write_text("old")
    elif before == "link":
        path.symlink_to(target)
    replace(str(path), "new\n", 0o444)
    assert path.read_text() == "new\n" and not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert target.read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["name", "target"]
