"""Any tree comes back as it was, and any damage to an archive is an ArchiveError or harmless."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.archive.tars import contents, fingerprint, member, pax, unpack
from vm0.archive.entries import EXCLUDED_NAMES, STAGING_PREFIX, EntryKind, link_problem, path_problem
from vm0.archive.errors import ArchiveError
from vm0.archive.members import Limits
from vm0.archive.pack import pack
from vm0.archive.scan import scan

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n"), min_size=1, max_size=60).filter(
    lambda name: path_problem(name) is None and name not in EXCLUDED_NAMES and not name.startswith(STAGING_PREFIX)
)
PATHS = st.lists(NAMES | st.sampled_from("abc"), min_size=1, max_size=5).map(tuple)
FILES = st.tuples(st.binary(max_size=2000), st.sampled_from([1, 1, 100]), st.booleans())  # content, repeats, executable
LINKS = st.lists(NAMES | st.sampled_from(["..", "..", ".", "a", "b"]), min_size=1, max_size=4).map("/".join)
TREES = st.dictionaries(PATHS, FILES | LINKS, max_size=12)


def build(tree: dict, root: pathlib.Path) -> None:
    for parts, what in tree.items():
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, str):
                if link_problem(parts[:-1], what) is None:
                    path.symlink_to(what)
            else:
                with open(path, "xb") as file:
                    file.write(what[0] * what[1])
                os.chmod(path, 0o755 if what[2] else 0o644)
        except OSError:
            continue  # the same name twice, a file in the way of a folder, a loop: whatever could be made counts


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES)
def test_scan_pack_extract_gives_the_same_tree(tree: dict) -> None:
    with tempfile.TemporaryDirectory() as base:
        source, target = pathlib.Path(base, "source"), pathlib.Path(base, "target")
        source.mkdir()
        target.mkdir()
        build(tree, source)
        before = scan(source)
        out = io.BytesIO()
        pack(source, before.entries, out)
        report = unpack(out.getvalue(), target)
        assert (report.skipped, before.skipped) == ([], ())
        assert scan(target) == before
        assert report.files == sum(entry.kind is not EntryKind.SYMLINK for entry in before.entries)
        everything = contents(source)
        files = {name: what for name, what in everything.items() if what != "/"}
        assert {name: what for name, what in contents(target).items() if what != "/"} == files


SAMPLE = b"".join(
    [
        member("./a/file", b"content" * 100),
        pax(path="./" + "long" * 40, mtime="1.5"),
        member("x", b"data"),
        member("././@LongLink", b"y" * 120 + b"\0", kind=b"L"),
        member("y", b"more"),
        member("./link", kind=b"2", link="a/file"),
        member("./hard", kind=b"1", link="./a/file"),
        member("d", kind=b"5"),
        bytes(1024),
    ]
)
LIMITS = Limits(total_bytes=1 << 20, entries=100)
HOSTILE_TEXTS = st.sampled_from(
    [b"../../evil", b"/tmp/vm0-evil", b"link/evil", b"..", b".", b"", b"a/file/x", b"\xff", b"d", b"hard", b"a"]
)


def check(data: bytes) -> None:
    """Unpack between sentinels; nothing but ArchiveError may come out, and nothing outside may change."""
    with tempfile.TemporaryDirectory() as base:
        root = pathlib.Path(base)
        (root / "sentinel").write_text("sentinel")
        target = root / "deep" / "target"
        target.mkdir(parents=True)
        (target / "out").symlink_to("../..")
        try:
            unpack(data, target, LIMITS)
        except ArchiveError:
            assert sorted(path.name for path in target.iterdir()) == ["out"]
        assert not any(name.startswith(".vm0-extract") for name in os.listdir(target))
        for path in target.rglob("*"):
            assert path.is_symlink() or path.is_dir() or path.is_file()
            if path.is_symlink() and path.name != "out" and path.exists():
                assert path.resolve().is_relative_to(target.resolve())
        outside = {name: what for name, what in fingerprint(root).items() if not name.startswith("deep/target/")}
        assert sorted(outside) == [".", "deep", "deep/target", "sentinel"]
        assert (root / "sentinel").read_text() == "sentinel"


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    resum=st.booleans(),
)
def test_mutated_tars_never_escape_and_never_crash(edits: list[tuple[int, int]], resum: bool) -> None:
    data = bytearray(SAMPLE)
    for position, value in edits:
        data[position] = value
    if resum:  # so that the change gets past the checksum
        for start in {position - position % 512 for position, _ in edits}:
            block = data[start : start + 512]
            data[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    check(gzip.compress(bytes(data), 1))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_gzip_streams_never_escape_and_never_crash(data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(SAMPLE))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(packed[: data.draw(st.integers(0, len(packed)))]))


@settings(max_examples=300, deadline=None)
@given(
    members=st.lists(
        st.tuples(
            st.lists(HOSTILE_TEXTS, min_size=1, max_size=3).map(b"/".join),
            st.sampled_from([b"0", b"1", b"2", b"2", b"5", b"3", b"6", b"S"]),
            st.lists(HOSTILE_TEXTS, min_size=1, max_size=3).map(b"/".join),
        ),
        max_size=8,
    )
)
def test_well_formed_hostile_members_never_escape(members: list[tuple[bytes, bytes, bytes]]) -> None:
    made = [member(name, b"evil" if kind == b"0" else b"", kind=kind, link=link) for name, kind, link in members]
    check(gzip.compress(b"".join(made) + bytes(1024)))


@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=3000))
def test_junk_is_an_archive_error(junk: bytes) -> None:
    check(junk)
    check(gzip.compress(junk))
