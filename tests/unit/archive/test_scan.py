"""A scan finds every file and link with its hash, reports what it leaves out, and is not led astray."""

from __future__ import annotations

import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from vm0.archive import entries as rules
from vm0.archive.entries import Cause, EntryKind
from vm0.archive.errors import ArchiveError, ArchiveReason
from vm0.archive.scan import scan
from vm0.contracts import names
from vm0.contracts.storages import FileEntry


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_limits_are_those_of_the_contract() -> None:
    assert (rules.MAX_FILE_BYTES, rules.MAX_ENTRIES) == (names.MAX_FILE_BYTES, names.MAX_FILES)
    FileEntry(path="x" * rules.MAX_PATH_BYTES, hash="0" * 64, size=rules.MAX_FILE_BYTES)


def test_files_links_and_modes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "a.txt").write_bytes(b"hello")
    (tmp_path / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    os.chmod(tmp_path / "sub" / "run", 0o711)
    (tmp_path / "sub" / "deep" / "empty").touch()
    (tmp_path / "link").symlink_to("ü/nowhere")
    (tmp_path / "to-folder").symlink_to("sub")
    found = scan(tmp_path)
    assert found.skipped == ()
    assert [(entry.path, entry.hash, entry.size, entry.kind) for entry in found.entries] == [
        ("a.txt", sha(b"hello"), 5, EntryKind.FILE),
        ("link", sha(b"vm0:symlink\0" + "ü/nowhere".encode()), 10, EntryKind.SYMLINK),
        ("sub/deep/empty", sha(b""), 0, EntryKind.FILE),
        ("sub/run", sha(b"vm0:executable\0#!/bin/sh\n"), 10, EntryKind.EXECUTABLE),
        ("to-folder", sha(b"vm0:symlink\0sub"), 3, EntryKind.SYMLINK),
    ]
    assert [entry.executable for entry in found.entries] == [False, False, False, True, False]


def test_a_chmod_and_a_swap_for_a_link_are_changes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    path.write_text("target")
    before = scan(tmp_path).entries
    os.chmod(path, 0o755)
    executable = scan(tmp_path).entries
    path.unlink()
    path.symlink_to("target")
    assert len({entries[0].hash for entries in (before, executable, scan(tmp_path).entries)}) == 3


def test_excluded_names_at_any_depth(tmp_path: pathlib.Path) -> None:
    for name in (".git/config", "a/.git/HEAD", "a/b/.vm0/x", ".vm0-extract-0123/tree/x", "a/.gitignore", "a/git/.git2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".git").write_text("gitdir: elsewhere")
    found = scan(tmp_path)
    assert [entry.path for entry in found.entries] == ["a/.gitignore", "a/git/.git2"]
    assert found.skipped == ()


def test_special_files_are_reported_and_never_opened(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        expected = {"fifo": "is a FIFO, which cannot be stored", "socket": "is a socket, which cannot be stored"}
        if os.geteuid() == 0:
            os.mknod(tmp_path / "device", 0o20666, os.makedev(1, 5))  # /dev/zero: reading it would never end
            expected["device"] = "is a character device, which cannot be stored"
        found = scan(tmp_path)
    assert found.entries == ()
    assert {item.name: item.reason for item in found.skipped} == expected
    assert {item.cause for item in found.skipped} == {Cause.SPECIAL}


def test_loops_of_links_end(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "absolute").symlink_to("/")
    assert [entry.path for entry in scan(tmp_path).entries] == ["a/up", "absolute", "self"]


def test_names_that_cannot_be_listed_are_reported(tmp_path: pathlib.Path) -> None:
    root = os.fsencode(tmp_path)
    with open(root + b"/latin-\xe9.txt", "w"), open(root + b"/line\nbreak", "w"), open(root + b"/fine\t\x1b[31m", "w"):
        pass
    os.symlink(b"\xff", root + b"/link")
    found = scan(tmp_path)
    assert [entry.path for entry in found.entries] == ["fine\t\x1b[31m"]
    assert {item.name: item.reason for item in found.skipped} == {
        "latin-\\udce9.txt": "the name is not valid UTF-8, so it cannot be listed in a manifest",
        "line\\nbreak": "the name holds a line break, and a version lists one path per line",
        "link": "the link's target is not valid UTF-8",
    }
    assert all(item.cause is Cause.NAME for item in found.skipped)


def test_trees_deeper_and_longer_than_a_path_are_reported(tmp_path: pathlib.Path) -> None:
    """PATH_MAX does not bound what exists: a folder can be made below any folder."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(rules.MAX_DEPTH + 5):
        os.mkdir("n" * 60, dir_fd=fd)
        inner = os.open("n" * 60, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    found = scan(tmp_path)
    assert found.entries == ()
    assert [item.reason for item in found.skipped] == ["the path is longer than 4096 bytes"]
    subprocess.run(["rm", "-rf", tmp_path / ("n" * 60)], check=True)
    deep = tmp_path.joinpath(*["d"] * rules.MAX_DEPTH)
    deep.mkdir(parents=True)
    (deep.parent / "file").touch()
    (deep / "file").touch()
    found = scan(tmp_path)
    assert [entry.path.count("/") for entry in found.entries] == [rules.MAX_DEPTH - 1]
    assert [item.reason for item in found.skipped] == ["the path is more than 100 folders deep"]


def test_large_files_are_reported_without_being_read(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(rules.MAX_FILE_BYTES + 1)
    (tmp_path / "ten").write_bytes(b"0123456789")
    found = scan(tmp_path)
    assert [entry.path for entry in found.entries] == ["ten"]
    assert [(item.name, item.cause) for item in found.skipped] == [("sparse", Cause.TOO_LARGE)]
    assert "104857601 bytes" in found.skipped[0].reason
    assert [item.name for item in scan(tmp_path, max_file_bytes=9).skipped] == ["sparse", "ten"]
    assert [entry.path for entry in scan(tmp_path, max_file_bytes=10).entries] == ["ten"]


def test_too_many_entries_is_an_error(tmp_path: pathlib.Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
        os.mkfifo(tmp_path / f"fifo{number}")
    assert len(scan(tmp_path, max_entries=10).entries) == 5
    with pytest.raises(ArchiveError) as caught:
        scan(tmp_path, max_entries=9)
    assert caught.value.reason is ArchiveReason.LIMIT
    assert caught.value.hint


def test_the_root_must_be_a_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "missing")
    with pytest.raises(NotADirectoryError):
        scan(tmp_path / "file")


UNREADABLE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from vm0.archive.scan import scan
os.chdir(sys.argv[2])  # the folders above may be closed to others
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
found = scan(".")
print([entry.path for entry in found.entries])
for item in found.skipped:
    print(item.name, item.reason, item.cause.value, sep="|")
"""


def test_what_cannot_be_read_is_reported(tmp_path: pathlib.Path) -> None:
    """As another user, because root reads everything."""
    (tmp_path / "open").touch()
    (tmp_path / "shut").touch()
    (tmp_path / "folder").mkdir()
    os.chmod(tmp_path, 0o755)
    os.chmod(tmp_path / "shut", 0)
    os.chmod(tmp_path / "folder", 0)
    source = pathlib.Path(__file__).resolve().parents[3] / "src"
    command = [sys.executable, "-I", "-S", "-c", UNREADABLE, str(source), str(tmp_path)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    os.chmod(tmp_path / "folder", 0o700)
    assert ran.stdout.splitlines() == [
        "['open']",
        "folder|cannot be read: Permission denied|unreadable",
        "shut|cannot be read: Permission denied|unreadable",
    ]


def test_a_tree_that_changes_under_the_scan_is_survived(tmp_path: pathlib.Path) -> None:
    """Files and folders come, go and turn into links to a secret; the scan ends and never reads the secret."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            folder = root / "folder"
            folder.mkdir()
            (folder / "file").write_text("public")
            (folder / "file").unlink()
            (folder / "file").symlink_to(secret / "file")
            (folder / "file").unlink()
            folder.rmdir()
            folder.symlink_to(secret)
            folder.unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(500):
            found = scan(root)
            assert sha(b"secret") not in {entry.hash for entry in found.entries}
            assert {item.cause for item in found.skipped} <= {Cause.UNREADABLE}
    finally:
        stop.set()
        thread.join()
