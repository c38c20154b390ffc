"""guest-download as it runs in a guest, and its retries in detail, against a store that misbehaves."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import stat
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.unit.archive.tars import archive, contents, member
from tests.unit.guest_download.conftest import (
    Answer,
    Store,
    cut_chunked,
    cut_short,
    hang_up,
    noise,
    ok,
    status,
    tar_of,
    trickle,
)
from vm0.archive.members import Limits
from vm0.guest_common.http import ApiClient
from vm0.guest_common.log import Log
from vm0.guest_common.operations import Operations
from vm0.guest_download.fetch import RETRY_DELAYS_S, Fetcher
from vm0.guest_download.main import UsageError, download_all, parse_arguments
from vm0.guest_download.plan import Item, ItemKind

SOURCE = pathlib.Path(__file__).resolve().parents[3] / "src"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from vm0.guest_download.main import main
sys.exit(main(sys.argv[2:]))
"""


class World:
    """A run's folders, and a fetcher whose waits are recorded instead of waited."""

    def __init__(self, root: pathlib.Path, api_url: str) -> None:
        self.root = root
        self.log_path, self.operations_path = root / "system.log", root / "ops.jsonl"
        self.mounts = root / "mounts"
        self.waits_s: list[float] = []
        self._api_url = api_url

    def item(self, name: str, url: str | None, kind: ItemKind = ItemKind.STORAGE) -> Item:
        return Item(kind=kind, mount_path=str(self.mounts / name), url=url)

    def download(self, *items: Item, **options: Any) -> int:
        log = Log("test", str(self.log_path), stderr_fd=None)
        client = ApiClient(self._api_url)
        fetcher = Fetcher(client, log, pause=self.waits_s.append, **options)
        try:
            return download_all(items, fetcher, log, Operations(str(self.operations_path)))
        finally:
            client.close()
            log.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def operations(self) -> list[tuple[str, bool, str]]:
        records = map(json.loads, self.operations_path.read_text().splitlines())
        return [(record["action_type"], record["success"], record.get("error", "")) for record in records]


@pytest.fixture
def world(tmp_path: pathlib.Path, api_url: str) -> World:
    (tmp_path / "mounts").mkdir()
    return World(tmp_path, api_url)


def test_folders_are_filled(world: World, store: Store) -> None:
    code = world.download(
        world.item("empty", None),
        world.item("a", store.put("/a", ok(tar_of(file=b"a")))),
        world.item("home/b", store.put("/b", ok(tar_of(file=b"b"))), ItemKind.ARTIFACT),
        world.item("memory", store.put("/m", ok(tar_of(file=b"m"))), ItemKind.MEMORY),
    )
    assert code == 0
    assert contents(world.mounts) == {
        "a": "/", "a/file": b"a", "empty": "/", "home": "/", "home/b": "/", "home/b/file": b"b",
        "memory": "/", "memory/file": b"m",
    }  # fmt: skip
    names = sorted(name for name, success, _ in world.operations if success)
    assert names == ["artifact_download", "artifact_download", "download_total", "storage_download", "storage_download"]
    assert world.waits_s == []


GOOD = tar_of(file=b"content" * 1000)
RETRIABLE: dict[str, Answer] = {
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "429": status(429),
    "408": status(408),
    "hang up": hang_up,
    "short": cut_short(noise(300_000), 200_000),
    "nothing": cut_short(GOOD, 0),
    "almost": cut_short(GOOD, len(GOOD) - 1),
    "chunks": cut_chunked(noise(300_000)),
}


@pytest.mark.parametrize("answer", RETRIABLE.values(), ids=RETRIABLE.keys())
def test_what_may_pass_is_tried_three_times(world: World, store: Store, answer: Answer) -> None:
    saved = world.item("saved", store.put("/saved", answer, answer, ok(GOOD)))
    assert world.download(saved) == 0
    assert world.waits_s == list(RETRY_DELAYS_S) == [1.0, 3.0]
    assert contents(world.mounts / "saved") == {"file": b"content" * 1000}
    lost = world.item("lost", store.put("/lost", answer))
    assert world.download(lost) == 1
    assert store.count("/lost") == 3
    assert contents(world.mounts / "lost") == {}
    assert "attempt 3 of 3" in world.log


FINAL: dict[str, Answer] = {
    "400": status(400),
    "403": status(403),
    "404": status(404),
    "409": status(409),
    "410": status(410),
    "301": status(301),
    "no archive": ok(b"<html>not an archive</html>"),
    "empty": ok(b""),
    "cut archive": ok(GOOD[:-10]),
    "damaged": ok(GOOD[:-8] + b"\0" * 8),
    "bomb": ok(archive(member("x", bytes(20 << 20)))),
}


@pytest.mark.parametrize("answer", FINAL.values(), ids=FINAL.keys())
def test_what_will_not_pass_is_tried_once(world: World, store: Store, answer: Answer) -> None:
    assert world.download(world.item("x", store.put("/x", answer, ok(GOOD)))) == 1
    assert (store.count("/x"), world.waits_s) == (1, [])
    assert contents(world.mounts / "x") == {}
    (name, success, error), (total, total_success, total_error) = world.operations
    assert (name, success, total, total_success) == ("storage_download", False, "download_total", False)
    assert error
    assert total_error == "1 of 1 failed"


@pytest.mark.parametrize("kind", [ItemKind.ARTIFACT, ItemKind.MEMORY])
def test_an_artifact_that_is_not_stored_yet_is_an_empty_folder(world: World, store: Store, kind: ItemKind) -> None:
    assert world.download(world.item("x", store.put("/x", status(404)), kind)) == 0
    assert contents(world.mounts) == {"x": "/"}
    assert [success for _, success, _ in world.operations] == [True, True]
    assert world.download(world.item("y", store.put("/y", status(403)), kind)) == 1


def test_all_items_are_tried(world: World, store: Store) -> None:
    good = [world.item(f"good{n}", store.put(f"/good{n}", ok(GOOD))) for n in range(6)]
    bad = [world.item(f"bad{n}", store.put(f"/bad{n}", status(400 + n))) for n in range(3)]
    assert world.download(bad[0], *good[:3], bad[1], *good[3:], bad[2]) == 1
    assert all((world.mounts / f"good{n}" / "file").exists() for n in range(6))
    assert sum(not success for name, success, _ in world.operations if name == "storage_download") == 3
    assert "3 of 9 failed" in world.log


def test_four_at_a_time(world: World, store: Store) -> None:
    """All four must be in progress at once before any is answered; a fifth would be counted."""
    gate = threading.Barrier(4, timeout=20)

    def answer(request: Any) -> None:
        gate.wait()
        ok(GOOD)(request)

    items = [world.item(f"m{n}", store.put(f"/m{n}", answer)) for n in range(8)]
    assert world.download(*items) == 0
    assert store.peak == 4


def test_overlapping_folders_are_filled_one_after_the_other(world: World, store: Store) -> None:
    """The child is asked for when the parent's answer is over, and its file goes on top."""
    parent = world.item("p", store.put("/parent", ok(archive(member("c/file", b"parent"), member("f", b"parent")))))
    child = world.item("p/c", store.put("/child", ok(tar_of(file=b"child"))))
    again = world.item("p/c", store.put("/again", ok(tar_of(more=b"again"))))
    assert world.download(parent, child, again) == 0
    assert contents(world.mounts / "p") == {"c": "/", "c/file": b"child", "c/more": b"again", "f": b"parent"}
    assert [asked.partition("?")[0] for asked in store.asked] == ["/parent", "/child", "/again"]


def test_all_folders_are_there_before_the_first_byte(world: World, store: Store) -> None:
    """A parent's archive must not decide what a child's folder is."""
    evil = archive(member("c", kind=b"2", link="elsewhere"), member("elsewhere/x", b"1"))
    parent = world.item("p", store.put("/p", ok(evil)))
    child = world.item("p/c", store.put("/c", ok(tar_of(file=b"child"))))
    assert world.download(parent, child) == 0
    assert contents(world.mounts / "p") == {"c": "/", "c/file": b"child", "elsewhere": "/", "elsewhere/x": b"1"}
    assert "left out 'c': a folder of this name is in the way" in world.log


def test_refused_members_are_logged_and_do_not_fail(world: World, store: Store) -> None:
    members = [member("../evil\n[forged] line"[:40], b"1") for _ in range(150)]
    assert world.download(world.item("x", store.put("/x", ok(archive(member("a", b"1"), *members))))) == 0
    assert contents(world.mounts) == {"x": "/", "x/a": b"1"}
    assert "left out 50 more" in world.log
    assert len(world.log.splitlines()) == 100 + 3
    assert not any(line.startswith("[forged]") for line in world.log.splitlines())


def test_a_signature_is_never_logged(world: World, store: Store, api_url: str) -> None:
    for name, answer in {"ok": ok(GOOD), "bad": ok(b"x"), "no": status(403), "soon": status(503)}.items():
        world.download(world.item(name, store.put(f"/{name}", answer)))
    world.download(world.item("host", "http://127.0.0.1:9/b/k?X-Signature=top-secret"))
    world.download(world.item("scheme", "ftp://h/b?X-Signature=top-secret"))
    text = world.log + world.operations_path.read_text()
    assert "top-secret" not in text
    assert "Signature" not in text
    assert "/soon" in text
    assert "127.0.0.1" in text


def test_a_trickle_is_ended(world: World, store: Store) -> None:
    """Every single read is quick, so only a limit on all of them together ends it."""
    item = world.item("x", store.put("/x", trickle(noise(100_000), store.stop), ok(GOOD)))
    assert world.download(item, attempt_limit_s=0.3) == 0
    assert "it took too long" in world.log
    assert world.waits_s == [1.0]


def test_limits_are_applied(world: World, store: Store) -> None:
    item = world.item("x", store.put("/x", ok(tar_of(a=b"", b=b"", c=b""))))
    assert world.download(item, limits=Limits(entries=2)) == 1
    assert "more than 2 entries" in world.log


def test_a_folder_that_cannot_be_made_fails_its_item_only(world: World, store: Store) -> None:
    (world.mounts / "file").write_text("in the way")
    (world.mounts / "dangling").symlink_to("nowhere")
    bad = [world.item("file/x", None), world.item("dangling", None), world.item("n" * 300, None)]
    assert world.download(*bad, world.item("good", store.put("/good", ok(GOOD)))) == 1
    assert (world.mounts / "good" / "file").exists()
    assert (world.mounts / "file").read_text() == "in the way"
    assert "3 of 4 failed" in world.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_is_made_belongs_to_the_owner(world: World, store: Store) -> None:
    (world.mounts / "old").mkdir()
    data = archive(member("d/f", b"1"), member("l", kind=b"2", link="d/f"))
    url = store.put("/x", ok(data))
    items = [world.item("old", url), world.item("new/deep", url), world.item("empty", None)]
    assert world.download(*items, owner=(1234, 5678)) == 0
    owners = {
        name: (world.mounts / name).lstat().st_uid
        for name in ("old", "old/d", "old/d/f", "old/l", "new", "new/deep", "new/deep/l", "empty")
    }
    assert owners.pop("old") == 0  # it was there: whoever made it decided
    assert set(owners.values()) == {1234}


# --- the program --------------------------------------------------------------------------------------------------


def program(
    tmp_path: pathlib.Path, *arguments: str, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "VM0_RUN_ID": "r", "VM0_RUNTIME_DIR": str(tmp_path), **env}
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(SOURCE), *arguments],
        input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, env=environ, capture_output=True, timeout=30,
    )  # fmt: skip
    return subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


@pytest.mark.parametrize("by_stdin", [False, True])
def test_the_program(tmp_path: pathlib.Path, store: Store, api_url: str, by_stdin: bool) -> None:
    mount = tmp_path / "mounts" / "a"
    manifest = json.dumps(
        {
            "storages": [{"mountPath": str(mount), "archiveUrl": store.put("/api/objects/a", ok(GOOD))}],
            "artifact": {"mountPath": str(tmp_path / "mounts" / "b"), "archiveUrl": None, "vasStorageName": "n"},
            "memory": None,
            "somethingNew": True,
        }
    ).encode()
    (tmp_path / "manifest.json").write_bytes(manifest)
    owner = ("--owner", f"{os.getuid()}:{os.getgid()}")
    if by_stdin:
        ran = program(tmp_path, *owner, "--manifest-stdin", stdin=manifest, VM0_API_URL=api_url)
    else:
        ran = program(tmp_path, str(tmp_path / "manifest.json"), *owner, VM0_API_URL=api_url)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert contents(tmp_path / "mounts") == {"a": "/", "a/file": b"content" * 1000, "b": "/"}
    assert stat.S_IMODE(mount.stat().st_mode) == 0o755
    assert (tmp_path / "system.log").read_text() == ran.stderr or "--owner is ignored" in ran.stderr
    assert "[INFO] [sandbox:download] 2 folders are ready" in ran.stderr
    records = [json.loads(line)["action_type"] for line in (tmp_path / "sandbox-ops.jsonl").read_text().splitlines()]
    assert sorted(records) == ["artifact_download", "download_total", "storage_download"]


def test_without_an_api_only_empty_folders_can_be_made(tmp_path: pathlib.Path) -> None:
    manifest = {"storages": [{"mountPath": str(tmp_path / "a")}]}
    assert program(tmp_path, "--manifest-stdin", stdin=json.dumps(manifest).encode()).returncode == 0
    assert (tmp_path / "a").is_dir()
    manifest["storages"].append({"mountPath": str(tmp_path / "b"), "archiveUrl": "/api/objects/b?x=secret"})
    ran = program(tmp_path, "--manifest-stdin", stdin=json.dumps(manifest).encode())
    assert ran.returncode == 1
    assert "VM0_API_URL is not set" in ran.stderr
    assert "secret" not in ran.stderr


def test_nobody_listens(tmp_path: pathlib.Path) -> None:
    """The attempts are counted in the log; the real delays add up to four seconds."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dead.sock"))
    manifest = {"storages": [{"mountPath": str(tmp_path / "a"), "archiveUrl": "/x"}]}
    ran = program(
        tmp_path, "--manifest-stdin", stdin=json.dumps(manifest).encode(), VM0_API_URL=f"unix:{tmp_path}/dead.sock"
    )
    assert ran.returncode == 1
    assert [line.count("; attempt") for line in ran.stderr.splitlines()[:2]] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), None, "exactly one manifest"),
        (("a", "b"), None, "exactly one manifest"),
        (("a", "--manifest-stdin"), b"{}", "exactly one manifest"),
        (("--frobnicate", "a"), None, "unknown option '--frobnicate'"),
        (("--owner", "root", "a"), None, "--owner takes two numbers"),
        (("a", "--owner"), None, "--owner takes two numbers"),
        (("/no/such/manifest",), None, "No such file"),
        (("--manifest-stdin",), b"", "is not JSON"),
        (("--manifest-stdin",), b"[]", "must be an object"),
        (("--manifest-stdin",), b"\xff", "is not JSON"),
        (("--manifest-stdin",), b'{"storages": [{"mountPath": "../x"}]}', "storages[0].mountPath"),
        (("--manifest-stdin",), b'{"storages": [{"mountPath": "/a/../x"}]}', "storages[0].mountPath"),
        (("--manifest-stdin",), b'{"storages": {}}', "storages: must be a list"),
        (("--manifest-stdin",), b"[" * 100_000, "is not JSON"),
        (("--manifest-stdin",), b" " * (17 << 20), "is larger than"),
    ],
)
def test_bad_usage_and_bad_manifests(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], stdin: bytes | None, message: str
) -> None:
    ran = program(tmp_path, *arguments, stdin=stdin)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_bad_api_address_is_named(tmp_path: pathlib.Path) -> None:
    ran = program(tmp_path, "--manifest-stdin", stdin=b"{}", VM0_API_URL="gopher://x")
    assert ran.returncode == 1
    assert "VM0_API_URL" in ran.stderr


def test_arguments() -> None:
    assert parse_arguments(["--owner", "1000:1001", "m"]) == ((1000, 1001), "m")
    assert parse_arguments(["--manifest-stdin"]) == (None, None)
    with pytest.raises(UsageError):
        parse_arguments(["--owner", "\u0661:1", "m"])  # another script's digit
