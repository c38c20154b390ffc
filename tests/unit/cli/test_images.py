"""`vm0 image ls/show/rm` on a store of small images, and what `build` refuses before it builds."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.unit.cli.conftest import Cli
from vm0.image import ImageStore, guest_build, load_recipe
from vm0.image.keys import digest_of
from vm0.image.store import ARTEFACTS, MANIFEST, publish


@pytest.fixture
def store(cli: Cli) -> ImageStore:
    return ImageStore(cli.home / "state/images")


def add(store: ImageStore, *, recipe: str = "base", build: str = "", built_at: int = 1_770_000_000) -> str:
    build = build or guest_build()
    key = digest_of([recipe, build, built_at])
    store.prepare()
    staging = store.staging(key)
    staging.mkdir()
    for name in ARTEFACTS:
        (staging / name).write_bytes(bytes(1024 * 1024))
    manifest = {
        "architecture": "x86_64",
        "artefacts": {name: {"size": 1024 * 1024, "sha256": "0" * 64} for name in ARTEFACTS},
        "built_at": built_at,
        "digest": "d" * 24,
        "guest_build": build,
        "kernel": {"version": "6.12.1-cloud-amd64", "package": "linux-image-6.12.1-cloud-amd64"},
        "npm": {"@scope/tool": "1.2.3"},
        "packages": {"git": "1", "jq": "2"},
        "python": "3.13.5-1",
        "recipe": load_recipe(recipe).normalized(),
        "warm": list(load_recipe(recipe).warm),
    }
    (staging / MANIFEST).write_text(json.dumps(manifest))
    publish(staging, store.root / key)
    return key


def test_nothing(cli: Cli, store: ImageStore) -> None:
    found = cli("image", "ls")
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"no images\n")
    assert json.loads(cli("image", "ls", "--json").stdout) == {"images": []}
    assert not store.root.exists()


def test_ls(cli: Cli, store: ImageStore) -> None:
    old = add(store, build="0" * 16)
    new = add(store, recipe="claude-code", built_at=1_770_000_001)
    lines = cli("image", "ls").stdout.decode().splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        [new, "claude-code", "x86_64", "6.12.1-cloud-amd64"],
        [old, "base", "x86_64", "6.12.1-cloud-amd64"],
    ]
    assert [line.split()[-1] for line in lines] == ["CODE", "current", "old"]
    found = json.loads(cli("image", "ls", "--json").stdout)["images"]
    assert [image["key"] for image in found] == [new, old]
    assert found[0]["directory"] == str(store.root / new)


def test_show_by_key_and_recipe(cli: Cli, store: ImageStore) -> None:
    older = add(store)
    newer = add(store, built_at=1_770_000_001)
    by_recipe = cli("image", "show", "base").stdout.decode()
    assert newer in by_recipe and "6.12.1-cloud-amd64" in by_recipe and "@scope/tool" in by_recipe
    assert cli("image", "show", older[:8]).stdout.decode().splitlines()[0].split() == ["key", older]
    document = json.loads(cli("image", "show", older, "--json").stdout)
    assert (document["key"], document["packages"]) == (older, {"git": "1", "jq": "2"})


@pytest.mark.parametrize("words", [["show", "nothing"], ["rm", "nothing"], ["rm", "base"]])
def test_what_is_not_there(cli: Cli, store: ImageStore, words: list[str]) -> None:
    """`rm` takes keys alone: a recipe's name would mean another image each day."""
    add(store)
    found = cli("image", *words)
    assert found.returncode == 1
    assert f"there is no image '{words[1]}'".encode() in found.stderr and b"hint: " in found.stderr
    assert len(store.list()) == 1


def test_rm(cli: Cli, store: ImageStore) -> None:
    one, two = add(store), add(store, built_at=1_770_000_001)
    found = cli("image", "rm", one[:10])
    assert (found.returncode, found.stderr.decode()) == (0, f"removed {one} (base)\n")
    assert [image.key for image in store.list()] == [two]


def test_rm_of_old_ones_and_of_the_cache(cli: Cli, store: ImageStore) -> None:
    add(store, build="0" * 16)
    kept = add(store)
    store.base("1" * 24).mkdir()
    found = cli("image", "rm", "--old", "--cache")
    assert found.returncode == 0 and b"removed 1 cached tree\n" in found.stderr
    assert [image.key for image in store.list()] == [kept]
    assert list((store.root / "bases").iterdir()) == []


def test_rm_of_several_removes_all_or_none(cli: Cli, store: ImageStore) -> None:
    key = add(store)
    assert cli("image", "rm", key, "nothing").returncode == 1
    assert len(store.list()) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["build", "nothing"], 1, "there is no recipe 'nothing'"),
        (["build", "missing.toml"], 1, "missing.toml: cannot be read"),
        (["build", "--from", "/nowhere"], 2, "/nowhere is no directory"),
        (["build", "--arch", "riscv64"], 2, "'riscv64' is not one of 'x86_64', 'aarch64'"),
        (["rm"], 2, "nothing to remove"),
    ],
)
def test_errors_before_anything_is_built(cli: Cli, store: ImageStore, words: list[str], code: int, said: str) -> None:
    found = cli("image", *words)
    assert (found.returncode, found.stdout) == (code, b"")
    assert said in found.stderr.decode() and "hint: " in found.stderr.decode()
    assert not store.root.exists()


def test_a_recipe_that_is_wrong_names_its_key(cli: Cli, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "base"\npackges = ["gcc"]\n')
    found = cli("image", "build", str(tmp_path / "mine.toml"))
    assert found.returncode == 1
    assert "mine.toml: packges: is not a key that vm0 knows here" in found.stderr.decode()
