"""The store: what counts as an image, who may have it, and what is left of builds that did not end well."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from vm0.image.errors import ImageError
from vm0.image.keys import image_key
from vm0.image.recipe import Recipe
from vm0.image.store import ARTEFACTS, COMPLETE, MANIFEST, ImageStore, publish

RECIPE = Recipe(name="base", suite="trixie", packages=("git",), warm=("git --version",))
BUILD = "0123456789abcdef"
HOLD = """
import pathlib, sys
from vm0.image.store import ImageStore
with ImageStore(pathlib.Path(sys.argv[1])).locked(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: pathlib.Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def fill(staging: pathlib.Path, *, built_at: int = 1, build: str = BUILD) -> None:
    staging.mkdir(parents=True, exist_ok=True)
    for name in ARTEFACTS:
        (staging / name).write_bytes(name.encode())
    manifest = {
        "architecture": "x86_64",
        "artefacts": {name: {"size": len(name), "sha256": "0"} for name in ARTEFACTS},
        "built_at": built_at,
        "digest": "d" * 24,
        "guest_build": build,
        "recipe": RECIPE.normalized(),
        "warm": list(RECIPE.warm),
    }
    (staging / MANIFEST).write_text(json.dumps(manifest))


def add(store: ImageStore, *, build: str = BUILD, built_at: int = 1) -> str:
    key = image_key(RECIPE, "x86_64", build)
    with store.locked(key):
        fill(store.staging(key), built_at=built_at, build=build)
        publish(store.staging(key), store.root / key)
    return key


def test_an_image_is_found_by_what_it_was_made_from(store: ImageStore) -> None:
    assert store.find(RECIPE, "x86_64", BUILD) is None
    key = add(store)
    image = store.find(RECIPE, "x86_64", BUILD)
    assert image is not None and image == store.get(key)
    assert (image.key, image.build, image.architecture, image.name) == (key, BUILD, "x86_64", "base")
    assert (image.digest, image.warm) == ("d" * 24, ("git --version",))
    for path in (image.vmlinuz, image.vmlinux, image.initramfs, image.rootfs):
        assert path.read_bytes().decode() == path.name
    assert store.find(RECIPE, "x86_64", "f" * 16) is None
    assert store.find(RECIPE, "aarch64", BUILD) is None
    assert store.find(RECIPE, "amd64", BUILD) == image
    with pytest.raises(ImageError, match="riscv"):
        store.find(RECIPE, "riscv64", BUILD)


@pytest.mark.parametrize("name", [*ARTEFACTS, MANIFEST, COMPLETE])
def test_an_image_with_a_missing_file_is_none(store: ImageStore, name: str) -> None:
    key = add(store)
    (store.root / key / name).unlink()
    assert store.get(key) is None
    assert store.list() == []


@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_image_with_a_file_of_another_size_is_none(store: ImageStore, name: str) -> None:
    key = add(store)
    os.truncate(store.root / key / name, 1)
    assert store.get(key) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"artefacts": {"vmlinuz": 1}}', '{"artefacts": []}'])
def test_an_image_with_a_damaged_manifest_is_none(store: ImageStore, text: str) -> None:
    key = add(store)
    (store.root / key / MANIFEST).write_text(text)
    assert store.get(key) is None


@pytest.mark.parametrize("key", ["", "..", "bases", "locks", "A" * 24, "0" * 23, "0" * 24 + "/..", "../../etc"])
def test_what_is_no_key_is_no_image(store: ImageStore, key: str) -> None:
    add(store)
    assert store.get(key) is None
    assert store.remove(key) is False
    assert len(store.list()) == 1


def test_the_newest_comes_first(store: ImageStore) -> None:
    keys = {number: add(store, build=f"{number:016x}", built_at=number) for number in (2, 3, 1)}
    assert [image.key for image in store.list()] == [keys[3], keys[2], keys[1]]


def test_remove(store: ImageStore) -> None:
    key = add(store)
    assert store.remove(key) is True
    assert store.get(key) is None and not (store.root / key).exists()
    assert store.remove(key) is False


def test_a_half_removed_image_can_be_removed_again(store: ImageStore) -> None:
    key = add(store)
    (store.root / key / COMPLETE).unlink()
    assert store.remove(key) is True


def test_a_damaged_image_is_replaced(store: ImageStore) -> None:
    key = add(store)
    os.truncate(store.root / key / "vmlinuz", 0)
    (store.root / key / "left over").touch()
    assert add(store) == key
    assert store.get(key) is not None
    assert {path.name for path in (store.root / key).iterdir()} == {*ARTEFACTS, MANIFEST, COMPLETE}


def test_others_may_read_images_and_not_the_trees(store: ImageStore) -> None:
    """QEMU runs as another user; a tree of a guest has programs that become root."""
    key = add(store)
    assert store.root.stat().st_mode & 0o777 == 0o755
    assert (store.root / key).stat().st_mode & 0o005 == 0o005
    for name in ("bases", "staging", "locks"):
        assert (store.root / name).stat().st_mode & 0o777 == 0o700


@pytest.fixture
def holder(store: ImageStore) -> subprocess.Popen[str]:
    store.prepare()
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root), "0" * 24],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_another_process_builds_stays(store: ImageStore, holder: subprocess.Popen[str]) -> None:
    with holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        for key in ("0" * 24, "1" * 24):
            store.staging(key).mkdir()
            store.base(key).mkdir()
        with pytest.raises(ImageError, match="is being built"), store.locked("0" * 24, wait=False):
            pass
        (store.root / ("0" * 24)).mkdir()
        with pytest.raises(ImageError, match="is being built"):
            store.remove("0" * 24)
        store.remove_abandoned()
        assert store.remove_bases() == 1
        for name in ("staging", "bases"):
            assert [path.name for path in (store.root / name).iterdir()] == ["0" * 24]
        said: list[str] = []

        def waiting() -> None:
            said.append("waiting")
            holder.stdin.close()  # type: ignore[union-attr]

        with store.locked("0" * 24, waiting=waiting):
            assert said == ["waiting"]


def test_a_lock_of_a_killed_process_is_free(store: ImageStore, holder: subprocess.Popen[str]) -> None:
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        store.staging("0" * 24).mkdir()
        holder.kill()
        holder.wait(timeout=30)
        store.remove_abandoned()
        assert list((store.root / "staging").iterdir()) == []


def test_a_lock_is_held_as_long_as_a_program_of_the_build_lives(store: ImageStore) -> None:
    """A builder that is killed leaves its programs for a moment, and they still write into the staging directory."""
    with store.locked("0" * 24) as lock:
        store.staging("0" * 24).mkdir()
        program = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock])
    with program:
        with pytest.raises(ImageError), store.locked("0" * 24, wait=False):
            pass
        program.kill()
    with store.locked("0" * 24, wait=False):
        pass


def test_a_lock_goes_with_what_it_is_for(store: ImageStore) -> None:
    key = add(store)
    assert [path.name for path in (store.root / "locks").iterdir()] == [key]
    store.remove(key)
    assert list((store.root / "locks").iterdir()) == []


def test_a_lock_that_was_removed_is_held_by_nobody(store: ImageStore, holder: subprocess.Popen[str]) -> None:
    """Who waited for it gets the lock that now has the name, so that two never hold one key."""
    key = "0" * 24
    path = store.root / "locks" / key
    with holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"

        def waiting() -> None:
            path.unlink()
            path.touch()
            holder.stdin.close()  # type: ignore[union-attr]

        with store.locked(key, waiting=waiting) as lock:
            assert os.path.samestat(os.fstat(lock), path.stat())
            with pytest.raises(ImageError), store.locked(key, wait=False):
                pass


def test_an_empty_store_has_nothing(store: ImageStore) -> None:
    assert store.list() == []
    assert not store.root.exists()
