"""Trees: nothing is written outside of one, and what a build makes has the same time in every build."""

from __future__ import annotations

import os
import pathlib
import py_compile
import struct
import time

import pytest

from tests.support.capabilities import require
from vm0.image.errors import BuildError
from vm0.image.tree import FIXED_TIME, MOUNT_POINTS, fix_times, inside, tidy, write

SHIPPED = 1_600_000_000  # when a package was made


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    require(os.geteuid() == 0, "files of a guest belong to root")
    path = tmp_path / "tree"
    path.mkdir()
    return path


def shipped(path: pathlib.Path, content: str = "") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (SHIPPED, SHIPPED))
    return path


def test_write_makes_directories_and_replaces(tree: pathlib.Path) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/resolv.conf").symlink_to("/run/resolved")
    write(tree, "/etc/resolv.conf", b"plain", 0o640)
    write(tree, "/home/dev/.config/tool", b"x", owner=(1000, 1001))
    assert not (tree / "etc/resolv.conf").is_symlink()
    assert (tree / "etc/resolv.conf").read_bytes() == b"plain"
    assert (tree / "etc/resolv.conf").stat().st_mode & 0o7777 == 0o640
    for name in ("home", "home/dev/.config", "home/dev/.config/tool"):
        assert ((tree / name).stat().st_uid, (tree / name).stat().st_gid) == (1000, 1001)


@pytest.mark.parametrize("target", ["/etc", "../../..", "../../../../../../../../etc"])
def test_a_link_that_leads_out_is_refused(tree: pathlib.Path, target: str) -> None:
    (tree / "outside").symlink_to(target)
    with pytest.raises(BuildError, match="leads out"):
        inside(tree, "/outside/passwd")
    with pytest.raises(BuildError, match="leads out"):
        write(tree, "/outside/passwd", b"")


def test_links_inside_are_followed(tree: pathlib.Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "bin").symlink_to("usr/bin")
    write(tree, "/bin/tool", b"x")
    assert (tree / "usr/bin/tool").read_bytes() == b"x"


def test_only_what_was_made_gets_the_fixed_time(tree: pathlib.Path) -> None:
    old, since = shipped(tree / "usr/old"), time.time()
    (tree / "usr/new").write_text("")
    (tree / "usr/link").symlink_to("/nowhere")
    fix_times(tree, since=since)
    assert old.stat().st_mtime == SHIPPED
    for path in (tree, tree / "usr", tree / "usr/new", tree / "usr/link"):
        assert path.lstat().st_mtime == FIXED_TIME


def recorded(compiled: pathlib.Path) -> tuple[int, int]:
    return struct.unpack_from("<II", compiled.read_bytes(), 4)


def test_compiled_files_stay_valid(tree: pathlib.Path) -> None:
    """One of a package, compiled at its installation; one that a command installed; one that is compiled by hash."""
    package, command, hashed = shipped(tree / "a/package.py", "x = 1"), tree / "a/command.py", tree / "a/hashed.py"
    since = time.time()
    command.write_text("y = 2")
    hashed.write_text("z = 3")
    files = [pathlib.Path(py_compile.compile(str(path)) or "") for path in (package, command)]
    unchecked = pathlib.Path(
        py_compile.compile(str(hashed), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH) or ""
    )
    before = unchecked.read_bytes()
    fix_times(tree, since=since)
    assert recorded(files[0]) == (0, SHIPPED)
    assert recorded(files[1]) == (0, FIXED_TIME)
    assert unchecked.read_bytes() == before
    for path in (*files, unchecked):
        assert path.stat().st_mtime == FIXED_TIME


def test_compiled_files_that_were_stale_stay_stale(tree: pathlib.Path) -> None:
    since = time.time()
    source = tree / "m.py"
    source.write_text("x = 1")
    compiled = pathlib.Path(py_compile.compile(str(source)) or "")
    source.write_text("x = 22")
    fix_times(tree, since=since)
    assert recorded(compiled)[1] != FIXED_TIME or compiled.read_bytes()[12:16] != struct.pack("<I", 6)


def test_tidy_leaves_what_programs_expect(tree: pathlib.Path) -> None:
    since = time.time()
    for name in ("var/log/apt/term.log", "var/lib/apt/lists/x_Packages", "run/lock/x", "tmp/x", "boot/vmlinuz"):
        shipped(tree / name)
    for name in ("etc/passwd-", "etc/passwd", "var/lib/dpkg/status-old", "var/lib/dpkg/status"):
        shipped(tree / name, "x")
    (tree / "var/run").symlink_to("/run")
    shadow = shipped(tree / "etc/shadow", "root:*:20000:0:99999:7:::\nuser:!:20001:0:99999:7:::\nodd:!:\n")
    shadow.chmod(0o640)
    tidy(tree, since=since)
    left = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert left == {"etc/passwd", "etc/shadow", "var/lib/dpkg/status", "var/run"}
    assert (tree / "var/log/apt").is_dir() and (tree / "var/lib/apt/lists").is_dir()
    assert not (tree / "run/lock").exists()
    for name, mode in MOUNT_POINTS.items():
        assert (tree / name).stat().st_mode & 0o7777 == mode
    day = str(FIXED_TIME // 86400)
    assert shadow.read_text().splitlines() == [f"root:*:{day}:0:99999:7:::", f"user:!:{day}:0:99999:7:::", "odd:!:"]
    assert shadow.stat().st_mode & 0o777 == 0o640


def test_two_trees_made_at_other_times_are_equal(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def made(path: pathlib.Path, offset: int) -> dict[str, tuple[float, int, bytes]]:
        since = time.time() + offset
        for name in ("usr/lib/x.py", "etc/shadow", "var/log/x"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(f"user:!:{20000 + offset}:\n" if name == "etc/shadow" else "x")
            os.utime(path / name, (since, since))
        compiled = py_compile.compile(str(path / "usr/lib/x.py"), dfile="x.py")
        os.utime(compiled or "", (since, since))
        tidy(path, since=min(since, time.time()) - 60)
        return {
            found.relative_to(path).as_posix(): (
                found.stat().st_mtime,
                found.stat().st_mode,
                found.read_bytes() if found.is_file() else b"",
            )
            for found in path.rglob("*")
        }

    other = tmp_path / "other"
    other.mkdir()
    assert made(tree, 0) == made(other, 7)
