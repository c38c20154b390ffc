"""Lines of /etc/hosts: ours are replaced, the image's stay."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vm0.guest_common.names import MODES, hosts_text, settle, write

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


def test_nothing_before() -> None:
    assert hosts_text("", "vm0", "") == "127.0.0.1\tlocalhost\n127.0.1.1\tvm0 # vm0\n"


def test_settle(tmp_path: Path) -> None:
    """What the image has is kept, what it has not is empty, links are not followed, and twice is once."""
    etc, folder, elsewhere = tmp_path / "etc", tmp_path / "run" / "vm0", tmp_path / "elsewhere"
    etc.mkdir()
    elsewhere.write_text("nameserver 9.9.9.9\n")
    (etc / "hosts").write_text(IMAGE)
    (etc / "resolv.conf").symlink_to(elsewhere)
    for _ in range(2):
        settle(str(folder), str(etc))
        assert {path.name for path in etc.iterdir()} == set(MODES)
        assert (etc / "hosts").read_text() == IMAGE and (etc / "machine-id").read_text() == ""
        assert os.readlink(etc / "resolv.conf") == str(folder / "resolv.conf")
    write("resolv.conf", "nameserver 1.1.1.1\n", str(folder))
    assert (etc / "resolv.conf").read_text() == "nameserver 1.1.1.1\n"
    assert elsewhere.read_text() == "nameserver 9.9.9.9\n"
    assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in MODES} == MODES
