"""The snapshots in a state directory: listed, shown, removed; damaged ones too."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib

import pytest

from tests.unit.cli.conftest import Cli
from vm0.image import guest_build
from vm0.microvm.memory import new_memory
from vm0.runner.backends.snapshots import remove_snapshot, stored_snapshots
from vm0.sandbox import SandboxError
from vm0.sandbox_qemu.snapshot import save, snapshot_key


def saved(root: pathlib.Path, **made_from: str) -> str:
    """A complete snapshot of a tiny machine; its key."""
    facts = {"image": "0" * 24, "build": guest_build(), "vcpus": "1", "memory_mib": "1", "disk_mib": "2", **made_from}
    key = snapshot_key(facts)
    root.mkdir(parents=True, exist_ok=True)
    disk = root / "template"
    disk.write_bytes(b"disk" * 1024)
    ram = new_memory(1)
    try:
        os.pwrite(ram, b"memory", 4096)
        save(
            root / key, ram=ram, state=b"state", disk=disk, kernel_parameters="quiet", build=facts["build"],
            made_from=facts,
        )  # fmt: skip
    finally:
        os.close(ram)
        disk.unlink()
    return key


@pytest.fixture
def root(cli: Cli) -> pathlib.Path:
    return cli.home / "state" / "snapshots"


def test_there_may_be_none(cli: Cli, root: pathlib.Path) -> None:
    assert stored_snapshots(root) == []
    found = cli("snapshot", "ls")
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"no snapshots\n")
    assert json.loads(cli("snapshot", "ls", "--json").stdout) == {"snapshots": []}


def test_what_is_there_is_told_with_what_it_was_made_from(cli: Cli, root: pathlib.Path) -> None:
    key = saved(root, vcpus="3")
    (found,) = json.loads(cli("snapshot", "ls", "--json").stdout)["snapshots"]
    assert (found["key"], found["made_from"]["vcpus"], found["remark"]) == (key, "3", "its image is gone")
    assert found["disk_bytes"] > 0 and found["made_at"] > 0
    shown = cli("snapshot", "show", key[:6]).stdout.decode()
    assert key in shown and "vCPUs" in shown and "1 MiB" in shown
    assert key in cli("snapshot", "ls").stdout.decode()


def test_a_damaged_one_is_listed_and_can_go(cli: Cli, root: pathlib.Path) -> None:
    key = saved(root)
    (root / key / "complete").unlink()
    assert [(found.key, bool(found.problem)) for found in stored_snapshots(root)] == [(key, True)]
    assert b"damaged" in cli("snapshot", "ls").stdout
    assert cli("snapshot", "rm", key).returncode == 0
    assert stored_snapshots(root) == []


def test_old_ones_go_together_and_the_others_stay(cli: Cli, root: pathlib.Path) -> None:
    keys = {saved(root, build="other"), saved(root)}  # the second one's image is not here
    found = cli("snapshot", "rm", "--old")
    assert found.returncode == 0
    assert all(f"removed {key}" in found.stderr.decode() for key in keys)
    assert stored_snapshots(root) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["rm"], 2, "nothing to remove"),
        (["rm", "ffff"], 1, "there is no snapshot 'ffff'"),
        (["show", "ffff"], 1, "`vm0 snapshot ls` lists them"),
    ],
)
def test_what_is_not_there_is_said(words: list[str], code: int, said: str, cli: Cli) -> None:
    found = cli("snapshot", *words)
    assert found.returncode == code and said in found.stderr.decode()


def test_one_that_is_being_made_stays(root: pathlib.Path) -> None:
    key = saved(root)
    with open(root / f".{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SandboxError, match="is being made or loaded"):
            remove_snapshot(root, key)
    remove_snapshot(root, key)
    assert stored_snapshots(root) == []
