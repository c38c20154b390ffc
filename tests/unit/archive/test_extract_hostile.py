"""No archive can write outside its target, make a special file, or take more than its limits."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import resource
import stat
import subprocess
import sys
import tarfile
import time

import pytest

from tests.unit.archive.tars import END, archive, contents, fingerprint, member, pax, unpack
from vm0.archive.entries import Cause
from vm0.archive.errors import ArchiveError, ArchiveReason, SourceError
from vm0.archive.extract import MAX_REPORTED, extract
from vm0.archive.members import Limits

GOOD = member("./good", b"good")
SOURCE = pathlib.Path(__file__).resolve().parents[3] / "src"

REFUSED_NAMES = {
    "absolute": "/tmp/vm0-evil",
    "absolute twice": "//tmp/vm0-evil",
    "absolute after a dot": ".//tmp/vm0-evil",
    "parent": "../evil",
    "parent in the middle": "a/../../evil",
    "parent that stays inside": "a/../b",
    "parent at the end": "a/..",
    "parent after dot": "./../evil",
    "only the parent": "..",
    "only a dot": ".",
    "empty component": "a//b",
    "trailing slash of a file": "a/",
    "no name": "",
    "line break": "a\nb",
    "300-byte component": "x" * 300,
    "300-byte component inside": f"a/{'x' * 300}/b",
    "5000-byte path": "/".join(["x" * 49] * 100),
    "5000-byte path, many levels": "x/" * 2500 + "x",
    "too deep": "x/" * 100 + "x",
}


@pytest.mark.parametrize("name", REFUSED_NAMES.values(), ids=REFUSED_NAMES.keys())
@pytest.mark.parametrize("kind", [b"0", b"5", b"1", b"2"], ids=["file", "folder", "hard link", "symlink"])
def test_bad_names_are_refused_and_the_rest_is_unpacked(target: pathlib.Path, name: str, kind: bytes) -> None:
    bad = pax(path=name) + member("short", b"evil" if kind == b"0" else b"", kind=kind, link="good")
    report = unpack(archive(GOOD, bad, member("after", b"1")), target)
    expected: dict[str, str | bytes] = {"good": b"good", "after": b"1"}
    if kind == b"5" and name in (".", "a/"):
        expected |= {"a": "/"} if name == "a/" else {}  # fine for folders
        assert report.skipped == []
    else:
        assert [item.cause for item in report.skipped] == [Cause.NAME]
        assert "\n" not in report.skipped[0].name + report.skipped[0].reason
        assert len(report.skipped[0].name) <= 201
    assert contents(target) == dict(sorted(expected.items()))


@pytest.mark.parametrize("name", [b"nul\0byte", b"latin-\xe9", b"\xff\xfe", b"half-\xed\xa0\x80"])
def test_names_that_are_no_text_are_refused(target: pathlib.Path, name: bytes) -> None:
    report = unpack(archive(pax(path=name), member("short", b"evil"), GOOD), target)
    assert contents(target) == {"good": b"good"}
    assert [item.cause for item in report.skipped] == [Cause.NAME]
    report.skipped[0].name.encode()


def test_a_gnu_long_name_with_a_nul_ends_there(target: pathlib.Path) -> None:
    unpack(archive(member("././@LongLink", b"short\0/../../evil\0", kind=b"L"), member("x", b"1")), target)
    assert contents(target) == {"short": b"1"}


def test_prefix_and_name_are_joined_before_they_are_judged(target: pathlib.Path) -> None:
    report = unpack(archive(member("evil", b"1", prefix=b"../.."), member("b", b"2", prefix=b"a")), target)
    assert contents(target) == {"a": "/", "a/b": b"2"}
    assert report.skipped[0].name == "../../evil"


REFUSED_LINKS = {
    "parent": "../evil",
    "parents": "../../../../hole",
    "climbs and returns": "../target/good",
    "absolute": "/etc/passwd",
    "root": "/",
    "parent after a name": "sub/../../secret",
    "parent after a dot": "./../secret",
    "parent after a name, inside": "sub/../good",
    "empty": "",
    "target of 5000 bytes": "x/" * 2500 + "x",
    "climbs 5000 bytes": "../" * 1700,
}


@pytest.mark.parametrize("text", REFUSED_LINKS.values(), ids=REFUSED_LINKS.keys())
def test_links_that_could_lead_out_are_refused(target: pathlib.Path, text: str) -> None:
    bad = pax(linkpath=text) + member("link", kind=b"2") + member("link/planted", b"evil")
    report = unpack(archive(GOOD, pax(linkpath=text), member("link", kind=b"2")), target)
    assert contents(target) == {"good": b"good"}
    assert [item.cause for item in report.skipped] == [Cause.LINK]
    unpack(archive(bad), target)
    assert contents(target)["link/planted"] == b"evil"  # in a folder of that name, not through the link


@pytest.mark.parametrize("text", [b"nul\0", b"\xff", b"../\xff"])
def test_links_with_texts_that_are_no_text_are_refused(target: pathlib.Path, text: bytes) -> None:
    report = unpack(archive(pax(linkpath=text), member("link", kind=b"2"), GOOD), target)
    assert contents(target) == {"good": b"good"}
    assert [item.cause for item in report.skipped] == [Cause.LINK]


def test_links_inside_are_kept_even_loops_and_dangling_ones(target: pathlib.Path) -> None:
    links = {
        "a/b/up": "../../good",
        "self": "self",
        "one": "two",
        "two": "one",
        "nowhere": "not/there",
        "here": ".",
        "a/root": "..",
        "whole": str(target / "good"),
    }
    report = unpack(
        archive(
            *(member(n, kind=b"2", link=text[:100]) for n, text in links.items() if n != "whole"),
            pax(linkpath=links["whole"]),
            member("whole", kind=b"2"),
            GOOD,
        ),
        target,
    )
    assert report.skipped == []
    assert report.links == len(links)
    assert {name: os.readlink(target / name) for name in links} == links
    assert (target / "a/b/up").read_bytes() == (target / "whole").read_bytes() == b"good"


def test_an_absolute_link_may_not_climb_out_of_the_target(target: pathlib.Path) -> None:
    for text in (f"{target}/../secret", f"{target}x", f"{target}/sub/../../secret"):
        report = unpack(archive(pax(linkpath=text), member("link", kind=b"2")), target)
        assert [item.cause for item in report.skipped] == [Cause.LINK]
    assert contents(target) == {}


def test_a_file_through_a_link_of_the_same_archive_stays_inside(target: pathlib.Path) -> None:
    """The classic: link to a folder, then a file below the link's name."""
    for text in ("/tmp", "../..", "good-folder"):
        unpack(archive(member("d", kind=b"2", link=text), member("d/evil", b"1")), target)
    assert contents(target) == {"d": "/", "d/evil": b"1"}


def test_a_chain_of_fifty_links_is_harmless(target: pathlib.Path) -> None:
    chain = [member(f"l{i}", kind=b"2", link=f"l{i + 1}") for i in range(50)]
    report = unpack(archive(*chain, member("l50", kind=b"2", link=".."), member("l0/evil", b"1")), target)
    assert [item.name for item in report.skipped] == ["l0", "l50"]
    assert contents(target)["l0/evil"] == b"1"


def test_links_that_only_together_lead_out_are_refused(target: pathlib.Path) -> None:
    """`d/../x` is inside as a text, but not once `d` is a link to `.`, whichever of the two comes first."""
    inner = member("sub/d", kind=b"2", link="."), member("l", kind=b"2", link="sub/d/../../secret")
    for order in (inner, inner[::-1]):
        unpack(archive(*order), target)
        assert not (target / "l").is_symlink()


def test_long_chains_do_not_trick_the_resolver(target: pathlib.Path) -> None:
    """CVE-2025-4517: link names so long that resolving the whole path fails, and then a link out of it."""
    folder = "d" * 240
    members = []
    here = ""
    for letter in "abcdefghijklmnop":
        members += [member(here + folder, kind=b"5"), pax(path=f"{here}{letter}", linkpath=folder)]
        members += [member("short", kind=b"2")]
        here += f"{folder}/" if len(here) < 3500 else ""
    through = "/".join("abcdefghijklmnop")
    members += [pax(path="escape", linkpath=f"{through}/{'../' * 30}outside"), member("short", kind=b"2")]
    members += [pax(path="escape/evil"), member("short", b"1")]
    report = unpack(archive(*members), target)
    assert not (target / "escape").is_symlink()
    assert "escape" in [item.name for item in report.skipped]


def test_what_was_in_the_target_before_is_never_followed(target: pathlib.Path) -> None:
    outside = target.parents[2]
    (target / "planted").symlink_to(outside)
    (target / "file").symlink_to(outside / "secret")
    (target / "sub").mkdir()
    (target / "sub" / "out").symlink_to("../../../../deep")
    report = unpack(
        archive(
            member("planted/evil", b"1"),
            member("file", b"new"),
            member("sub/out/evil", b"1"),
            member("via", kind=b"2", link="planted/secret"),
            member("via2", kind=b"2", link="sub/out"),
            member("planted/inner", kind=b"2", link="x"),
            member("sub/fine", kind=b"2", link="../file"),
        ),
        target,
    )
    assert {item.name: item.cause for item in report.skipped} == {
        "planted": Cause.CONFLICT,
        "sub/out": Cause.CONFLICT,
        "via": Cause.LINK,
        "via2": Cause.LINK,
        "planted/inner": Cause.CONFLICT,
    }
    assert not (target / "file").is_symlink()
    assert (target / "file").read_bytes() == (target / "sub" / "fine").read_bytes() == b"new"


def test_a_link_behind_an_existing_loop_is_decided(target: pathlib.Path) -> None:
    (target / "loop").symlink_to("loop")
    (target / "inside").symlink_to(f"{target}/somewhere")
    report = unpack(archive(member("l", kind=b"2", link="loop/x"), member("m", kind=b"2", link="inside/x")), target)
    assert report.skipped == []


HARD_LINKS = {
    "outside": "../../secret",
    "absolute": "/etc/passwd",
    "a symlink": "symlink",
    "a later file": "later",
    "a folder": "folder",
    "nothing": "nothing",
    "through a file": "good/x",
    "what was there before": "existing",
    "no name": "",
}


@pytest.mark.parametrize("text", HARD_LINKS.values(), ids=HARD_LINKS.keys())
def test_hard_links_only_reach_earlier_files_of_the_archive(target: pathlib.Path, text: str) -> None:
    (target / "existing").write_text("old")
    report = unpack(
        archive(
            GOOD,
            member("folder", kind=b"5"),
            member("symlink", kind=b"2", link="good"),
            member("hard", kind=b"1", link=text),
            member("later", b"later"),
        ),
        target,
    )
    assert not (target / "hard").exists()
    assert [(item.name, item.cause) for item in report.skipped] == [("hard", Cause.LINK)]


def test_a_hard_link_to_an_earlier_file_is_made(target: pathlib.Path) -> None:
    twice = member("./a/hard", kind=b"1", link="./good", size=4)  # some writers state the size of the linked file
    report = unpack(archive(GOOD, twice, twice, member("good", kind=b"1", link="good"), member("x", b"x")), target)
    assert contents(target) == {"a": "/", "a/hard": b"good", "good": b"good", "x": b"x"}
    assert report.skipped == []
    unpack(archive(GOOD, member("a/hard", b"changed", kind=b"0")), target)
    assert (target / "good").read_bytes() == b"good"  # replaced, not written through


@pytest.mark.parametrize("kind", [b"3", b"4", b"6", b"A", b"V", b"M", b"\x80", b"Z"])
def test_special_members_are_refused(target: pathlib.Path, kind: bytes) -> None:
    data = b"" if kind in b"346" else b"payload"
    report = unpack(archive(member("special", data, kind=kind), GOOD), target)
    assert contents(target) == {"good": b"good"}
    assert [item.cause for item in report.skipped] == [Cause.SPECIAL]


def test_sparse_members_are_refused_and_their_data_is_passed_over(target: pathlib.Path) -> None:
    gnu = member("s", size=1024, kind=b"S", magic=b"ustar  \0", tail=b"\1")
    maps = bytes(504) + b"\1" + bytes(7) + bytes(512)
    new = pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="999999999999")
    report = unpack(archive(gnu, maps, b"d" * 1024, new, member("t", b"0\n" * 256), GOOD), target)
    assert contents(target) == {"good": b"good"}
    assert [(item.name, item.cause) for item in report.skipped] == [("s", Cause.SPECIAL), ("t", Cause.SPECIAL)]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_are_reduced_to_two_whatever_the_umask(target: pathlib.Path, umask: int) -> None:
    modes = {"a": 0o4777, "b": 0o2755, "c": 0o1777, "d": 0o600, "e": 0o000, "f": 0o011, "g": 0o100}
    previous = os.umask(umask)
    try:
        unpack(
            archive(*(member(f"{n}/{n}", mode=mode) for n, mode in modes.items()), member("h", kind=b"5", mode=0o7777)),
            target,
        )
    finally:
        os.umask(previous)
    found = {n: stat.S_IMODE((target / n / n).stat().st_mode) for n in modes}
    assert found == {"a": 0o755, "b": 0o755, "c": 0o755, "d": 0o644, "e": 0o644, "f": 0o644, "g": 0o755}
    assert {stat.S_IMODE((target / n).stat().st_mode) for n in [*modes, "h"]} == {0o755}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owners_come_from_the_caller_and_never_from_the_archive(target: pathlib.Path) -> None:
    data = archive(member("d/f", b"1", uid=4242), member("d/l", kind=b"2", link="f", uid=4242), member("e", kind=b"5"))
    for owner, expected in ((None, (os.geteuid(), os.getegid())), ((1234, 5678), (1234, 5678))):
        extract(io.BytesIO(data), target, owner=owner)
        found = {name: (target / name).lstat() for name in ("d", "d/f", "d/l", "e")}
        if owner is None:
            assert {(s.st_uid, s.st_gid) for s in found.values()} == {expected}
            subprocess.run(["rm", "-rf", *map(str, target.iterdir())], check=True)
        else:
            assert {(s.st_uid, s.st_gid) for s in found.values()} == {expected}


def test_duplicates_keep_folders_and_let_the_last_file_win(target: pathlib.Path) -> None:
    report = unpack(
        archive(
            member("x", b"1"),
            member("x", b"2"),
            member("x/below", b"3"),
            member("x", kind=b"5"),
            member("x", kind=b"2", link="good"),
            member("y", kind=b"5"),
            member("y", b"file"),
            member("y", kind=b"2", link="good"),
            member("y", kind=b"1", link="good"),
            member("y/z", b"4"),
            GOOD,
        ),
        target,
    )
    assert contents(target) == {"good": b"good", "x": "-> good", "y": "/", "y/z": b"4"}
    assert {item.cause for item in report.skipped} == {Cause.CONFLICT, Cause.LINK}


def test_case_twins_are_two_files(target: pathlib.Path) -> None:
    unpack(archive(member("Name", b"1"), member("name", b"2"), member("NAME/x", b"3")), target)
    assert contents(target) == {"NAME": "/", "NAME/x": b"3", "Name": b"1", "name": b"2"}


def test_a_populated_target_is_merged(target: pathlib.Path) -> None:
    (target / "keep").write_text("old")
    (target / "sub" / "inner").mkdir(parents=True)
    (target / "sub" / "replace").write_text("old")
    (target / "was-file").write_text("old")
    (target / "was-folder").mkdir()
    os.chmod(target / "sub", 0o700)
    report = unpack(
        archive(
            member("sub/replace", b"new"),
            member("sub/inner/added", b"new"),
            member("was-file/x", b"new"),
            member("was-folder", b"new"),
        ),
        target,
    )
    assert contents(target) == {
        "keep": b"old",
        "sub": "/",
        "sub/inner": "/",
        "sub/inner/added": b"new",
        "sub/replace": b"new",
        "was-file": b"old",
        "was-folder": "/",
    }
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o700
    assert {item.name: item.reason for item in report.skipped} == {
        "was-file": "a file or link of this name is in the way",
        "was-folder": "a folder of this name is in the way",
    }


def test_the_report_is_bounded(target: pathlib.Path) -> None:
    report = unpack(archive(*(member(f"../{i}", b"") for i in range(MAX_REPORTED * 3))), target)
    assert (len(report.skipped), report.skipped_count) == (MAX_REPORTED, MAX_REPORTED * 3)


# --- damage -------------------------------------------------------------------------------------------------------

PLAIN = b"".join([GOOD, pax(path="p" * 200), member("x", b"y" * 700), member("l", kind=b"2", link="good")])


def refused(data: bytes, target: pathlib.Path, limits: Limits | None = None) -> ArchiveError:
    before = fingerprint(target)
    with pytest.raises(ArchiveError) as caught:
        unpack(data, target, limits)
    assert fingerprint(target) == before, "a failed extraction leaves the target as it was"
    return caught.value


@pytest.mark.parametrize("blocks", range(len(PLAIN) // 512 + 1))
def test_a_tar_cut_at_any_block_is_truncated(target: pathlib.Path, blocks: int) -> None:
    (target / "old").write_text("old")
    assert refused(gzip.compress(PLAIN[: blocks * 512]), target).reason is ArchiveReason.TRUNCATED


def test_a_gzip_stream_cut_anywhere_is_truncated(target: pathlib.Path) -> None:
    whole = archive(PLAIN)
    for size in range(len(whole)):
        assert refused(whole[:size], target).reason is ArchiveReason.TRUNCATED


def test_any_flipped_byte_is_found_or_harmless(target: pathlib.Path) -> None:
    """The gzip checksum covers the content; the gzip header's time and name are not content."""
    whole = archive(PLAIN)
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        if position in range(4, 10):
            continue
        assert refused(bytes(broken), target).reason in (ArchiveReason.CORRUPT, ArchiveReason.TRUNCATED)


def with_size(field: bytes) -> bytes:
    return archive(member("x", b"data", size=field), GOOD)


DAMAGED = {
    "no gzip": b"PK\3\4 this is a zip",
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(100),
    "gzip of text": gzip.compress(b"hello, I am no tar\n" * 100),
    "gzip of gzip": gzip.compress(archive(PLAIN).ljust(1024, b"\0")),
    "negative size": with_size(b"\xff" * 12),
    "negative size, small": with_size(b"\xff" * 10 + b"\xfe\x00"),
    "size is text": with_size(b"hello world\0"),
    "size with a sign": with_size(b"-0000000010\0"),
    "checksum": archive(GOOD[:148] + b"0000000\0" + GOOD[156:]),
    "pax size negative": archive(pax(size="-1"), member("x", b"data")),
    "pax size float": archive(pax(size="1e3"), member("x", b"data")),
    "pax size empty": archive(pax(size=""), member("x", b"data")),
    "pax size huge": archive(pax(size="9" * 40), member("x", b"data")),
    "pax size underscore": archive(pax(size="1_0"), member("x", b"data")),
    "pax length zero": archive(member("p", b"0 path=x\n", kind=b"x"), GOOD),
    "pax length short": archive(member("p", b"3 path=x\n", kind=b"x"), GOOD),
    "pax length beyond": archive(member("p", b"99999 path=x\n", kind=b"x"), GOOD),
    "pax length endless": archive(member("p", b"9" * 300, kind=b"x"), GOOD),
    "pax length negative": archive(member("p", b"-9 path=x\n", kind=b"x"), GOOD),
    "pax no equals": archive(member("p", b"8 path1\n", kind=b"x"), GOOD),
    "pax no newline": archive(member("p", b"9 path=xy", kind=b"x"), GOOD),
    "pax no key": archive(member("p", b"5 =x\n", kind=b"x"), GOOD),
    "pax global path": archive(pax(b"g", path="../evil"), GOOD),
    "pax global size": archive(pax(b"g", size="0"), GOOD),
    "garbage after gzip": archive(GOOD) + b"garbage",
    "half a gzip after gzip": archive(GOOD) + b"\x1f\x8bgarbage",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_archives_are_refused(target: pathlib.Path, data: bytes) -> None:
    assert refused(data, target).reason is ArchiveReason.CORRUPT


def test_a_pax_size_overrides_the_header(target: pathlib.Path) -> None:
    """Both readings must agree on where the next header is."""
    unpack(archive(pax(size="3"), member("x", b"abc", size=0), GOOD), target)
    assert contents(target) == {"good": b"good", "x": b"abc"}


def test_legal_oddities_are_accepted(target: pathlib.Path) -> None:
    two = gzip.compress(GOOD) + gzip.compress(member("second", b"2") + END) + bytes(10_000)
    assert unpack(two, target).skipped == []
    odd = [
        member("./", kind=b"5"),
        member("v7", b"1", magic=bytes(8), kind=b"\0"),
        member("v7folder/", magic=bytes(8), kind=b"\0"),
        member("spaces", b"12", size=b"         2 \0"),
        member("base256", b"123", size=b"\x80" + bytes(10) + b"\3"),
        member("year1", b"1", mtime=b"\xff" * 12),
        pax(mtime="253402300799.5"),
        member("year9999", b"1", mtime=b"\x80" + b"\x7f" * 11),
        pax(b"g", comment="from git"),
        member("contiguous", b"1", kind=b"7"),
    ]
    assert unpack(archive(*odd, end=bytes(512)), target).skipped == []
    assert sorted(contents(target)) == sorted(
        ["good", "second", "v7", "v7folder", "spaces", "base256", "year1", "year9999", "contiguous"]
    )
    report = unpack(archive(GOOD) + archive(member("hidden", b"1")), target)
    assert [item.cause for item in report.skipped] == [Cause.TRAILING]
    assert not (target / "hidden").exists()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_archives_of_other_writers_are_read(target: pathlib.Path, format: int) -> None:
    files = {"a": b"1", "b/" + "n" * 90: b"2", "c/" * 20 + "deep" * 10: b"3" * 100_000, "empty": b""}
    if format != tarfile.USTAR_FORMAT:
        files |= {"d/" + "long" * 50: b"4", "ünï/çødé": b"5"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=format) as out:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    assert unpack(packed.getvalue(), target).files == len(files)
    assert {name: (target / name).read_bytes() for name in files} == files


def test_archives_of_the_system_tar_are_read(target: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for number in range(50):
        path = target / f"d{number % 7}" / ("n" * number * 4 or "zero")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(number * 100))
    (target / "link").symlink_to("d0")
    packed = subprocess.run(["tar", "-czf", "-", "-C", target, "."], check=True, capture_output=True).stdout
    (target / "copy").mkdir()
    assert unpack(packed, target / "copy").skipped == []
    subprocess.run(["diff", "-r", "--no-dereference", "--exclude=copy", target, target / "copy"], check=True)


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (archive(*(member(f"f{i}") for i in range(11))), Limits(entries=10)),
        (archive(*(member(f"d{i}", kind=b"5") for i in range(11))), Limits(entries=10)),
        (archive(*(member("../no") for _ in range(11))), Limits(entries=10)),
        (archive(member("x", b"x" * 5000)), Limits(total_bytes=5000)),
        (archive(member("x", size=2**62, kind=b"0")), Limits()),
        (archive(member("x", size=b"\x80" + b"\xff" * 11)), Limits()),
        (archive(pax(size=str(2**62)), member("x")), Limits()),
        (archive(member("././@LongLink", size=2**30, kind=b"L")), Limits()),
        (archive(member("././@LongLink", b"x" * 300_000, kind=b"L"), GOOD), Limits()),
        (archive(pax(path="x" * 300_000), GOOD), Limits()),
        (archive(member("zeros", bytes(20 * 1024 * 1024))), Limits()),
        (archive(GOOD, end=bytes(20 * 1024 * 1024)), Limits()),
        (archive(GOOD) + bytes(2000), Limits(total_bytes=1600)),
        (archive(member("a", bytes(99_000))), Limits(ratio=10, ratio_after_bytes=90_000)),
    ],
    ids=["files", "folders", "refused", "total", "claims", "base256", "pax", "longname", "long", "path", "ratio", "end",
         "packed", "own ratio"],
)  # fmt: skip
def test_limits_end_the_extraction_at_once(target: pathlib.Path, data: bytes, limits: Limits) -> None:
    started_s = time.monotonic()
    error = refused(data, target, limits)
    assert error.reason is ArchiveReason.LIMIT
    assert time.monotonic() - started_s < 2


def test_small_archives_may_expand_more(target: pathlib.Path) -> None:
    assert unpack(archive(member("zeros", bytes(9 * 1024 * 1024))), target).bytes == 9 * 1024 * 1024


def test_a_header_full_of_tiny_records_takes_no_time(target: pathlib.Path) -> None:
    records = b"".join(b"8 k%03d=\n" % (i % 1000) for i in range(28_000))
    assert len(records) < 256 * 1024
    started_s = time.monotonic()
    unpack(archive(*[member("p", records, kind=b"x") + GOOD] * 4), target)
    assert time.monotonic() - started_s < 2


BOMB_PROGRAM = """
import sys, zlib
sys.path.insert(0, sys.argv[1])
from vm0.archive.errors import ArchiveError
from vm0.archive.extract import extract
from vm0.archive.members import Limits

class Bomb:
    '''Repeats one packed piece for ever: a stream of any size without its memory.'''
    def __init__(self, first, again):
        deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
        self.pieces = [deflater.compress(first) + deflater.flush(zlib.Z_FULL_FLUSH)]
        self.again = deflater.compress(again) + deflater.flush(zlib.Z_FULL_FLUSH)
    def read(self, size):
        return self.pieces.pop() if self.pieces else self.again

sys.path.insert(0, sys.argv[2])
from tests.unit.archive.tars import member
kind = sys.argv[4]
if kind == "file":
    bomb = Bomb(member("x", size=2**40), bytes(10 * 1024 * 1024))
elif kind == "names":
    bomb = Bomb(b"", b"".join(member(f"../{i}" * 9) for i in range(1000)))
elif kind == "links":
    bomb = Bomb(b"", b"".join(member(f"l{i}" + "x" * 90, kind=b"2", link="y" * 100) for i in range(1000)))
elif kind == "longnames":
    bomb = Bomb(b"", member("L", b"x" * 200_000, kind=b"L") * 50)
try:
    extract(bomb, sys.argv[3], Limits(total_bytes=int(sys.argv[5]), ratio=10**6, entries=10**9))
except ArchiveError as exc:
    # not getrusage: it counts what the process was before exec
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(exc.reason.value, peak.split()[1])
"""


@pytest.mark.parametrize(
    ("kind", "total_bytes"), [("file", 400 << 20), ("names", 60 << 20), ("links", 60 << 20), ("longnames", 400 << 20)]
)
def test_memory_stays_bounded_whatever_the_archive_holds(target: pathlib.Path, kind: str, total_bytes: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BOMB_PROGRAM, SOURCE, SOURCE.parent, target, kind, str(total_bytes)],
        check=True,
        capture_output=True,
        text=True,
        timeout=50,
    )
    reason, peak_kib = ran.stdout.split()
    assert reason == "limit"
    assert int(peak_kib) < 64 * 1024
    assert contents(target) == {}


# --- the world around ---------------------------------------------------------------------------------------------


class FailingSource:
    def __init__(self, data: bytes, error: Exception) -> None:
        self._data, self._error = io.BytesIO(data), error

    def read(self, size: int) -> bytes:
        data = self._data.read(min(size, 100))
        if not data:
            raise self._error
        return data


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError(), RuntimeError("whatever")])
def test_a_failing_source_is_told_from_a_bad_archive(target: pathlib.Path, error: Exception) -> None:
    with pytest.raises(SourceError) as caught:
        extract(FailingSource(archive(PLAIN)[:-9], error), target)
    assert caught.value.__cause__ is error
    assert contents(target) == {}


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_sources_may_give_less_than_asked(target: pathlib.Path, chunk: int) -> None:
    whole = io.BytesIO(archive(PLAIN))

    class Slow:
        def read(self, size: int) -> bytes:
            return whole.read(min(size, chunk))

    assert extract(Slow(), target).files == 2


def test_a_full_or_forbidden_disk_is_an_os_error_and_leaves_nothing(target: pathlib.Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            unpack(archive(GOOD, member("big", os.urandom(20_000))), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(target) == {}
    with pytest.raises(NotADirectoryError):
        unpack(archive(GOOD), target.parents[1] / "script")
    with pytest.raises(FileNotFoundError):
        unpack(archive(GOOD), target / "missing")


def test_no_descriptor_is_leaked(target: pathlib.Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for data in (
        archive(PLAIN),
        archive(PLAIN)[:-9],
        archive(member("a/b/c", b"1"), member("a/b", kind=b"2", link="x")),
    ):
        try:
            unpack(data, target)
        except ArchiveError:
            pass
    assert sorted(os.listdir("/proc/self/fd")) == before
