"""Recipes of one's own on top of packages that are there: what they say is in the image, and how they fail."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator

import pytest

from tests.host.image.conftest import mounts_below, unsquashed
from vm0.image import BuildError, BuildOptions, Image, ImageError, ImageStore, Recipe, build_image
from vm0.image.recipe import NpmPackage, RecipeFile, User
from vm0.image.tree import FIXED_TIME

pytestmark = [pytest.mark.host, pytest.mark.network]

Variant = Callable[..., Recipe]
BUILD = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
from vm0.image import ImageStore, build_image
from vm0.image.recipe import load_recipe
image = build_image(ImageStore(pathlib.Path(sys.argv[1])), load_recipe(sys.argv[2]), architecture=sys.argv[3],
                    progress=lambda text: print(text, flush=True))
print(image.key)
"""


def build(store: ImageStore, recipe: Recipe, **options: object) -> Image:
    made = BuildOptions(**options)  # type: ignore[arg-type]
    return build_image(store, recipe, architecture=platform.machine(), options=made)


def test_all_that_a_recipe_can_say(
    own_store: ImageStore, variant: Variant, tmp_path: pathlib.Path, large_path: pathlib.Path
) -> None:
    """An npm package from a directory, so that no registry is asked."""
    with tarfile.open(tmp_path / "tool-1.0.0.tgz", "w:gz") as tar:
        for name, content in {"package.json": b'{"version": "1.0.0"}', "run.sh": b"#!/bin/sh\necho ran\n"}.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    recipe = variant(
        npm=(NpmPackage(package="tool", bin={"run-tool": "run.sh"}),),
        users=(User(name="dev", uid=1234, home="/srv/dev", shell="/bin/sh"),),
        files=(
            RecipeFile(path="/srv/dev/.config/x", content=b"\0x", mode=0o600, owner="dev"),
            RecipeFile(path="/opt/module.py", content=b"x = 1\n"),
        ),
        commands=(
            "run-tool > /etc/said; id -u >> /etc/said; echo $HOME >> /etc/said",
            "test -c /dev/null && test -d /proc/self && test ! -e /dev/vda && test ! -e /dev/kvm",
            "python3 -m compileall -q /opt && date > /etc/when && rm -f /etc/resolv.conf || true; touch /tmp/x /run/x",
        ),
    )
    with image_without_debs(own_store, recipe, tmp_path) as image:
        tree = unsquashed(image, large_path / "tree")
        assert (tree / "etc/said").read_text() == "ran\n0\n/root\n"
        config = (tree / "srv/dev/.config/x").stat()
        assert (config.st_uid, config.st_mode & 0o777, (tree / "srv/dev/.config").stat().st_uid) == (1234, 0o600, 1234)
        assert (tree / "srv/dev").stat().st_uid == 1234
        assert not (tree / "etc/sudoers.d/vm0-dev").exists()
        assert image.manifest["npm"] == {"tool": "1.0.0"}
        compiled = next(tree.glob("opt/__pycache__/*.pyc")).read_bytes()
        assert int.from_bytes(compiled[8:12], "little") == FIXED_TIME == (tree / "opt/module.py").stat().st_mtime
        assert not list((tree / "tmp").iterdir()) and not list((tree / "run").iterdir())
        assert (tree / "etc/resolv.conf").read_bytes() == b""
    assert mounts_below(own_store.root) == []


@contextlib.contextmanager
def image_without_debs(own_store: ImageStore, recipe: Recipe, directory: pathlib.Path) -> Iterator[Image]:
    """Built with a directory that has npm packages; the Debian ones are those that the store has."""
    from vm0.image import packages

    original = packages.digest_of_files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "digest_of_files", lambda path, kind: "" if kind == "*.deb" else original(path, kind))
        yield build(own_store, recipe, from_dir=directory)


def test_a_command_that_fails(own_store: ImageStore, variant: Variant) -> None:
    """The error has its last lines, the log and a hint; what is left is the log, and the next build removes it."""
    recipe = variant(commands=("for i in 1 2 3; do echo line $i; done; echo wrong >&2; exit 3",))
    with pytest.raises(BuildError) as caught:
        build(own_store, recipe)
    said = str(caught.value)
    assert "exit code 3" in said and "| line 3\n  | wrong\n" in said
    assert "as root" in caught.value.hint
    log = pathlib.Path(caught.value.log)
    assert f"log: {log}" in said and "line 1" in log.read_text()
    assert log.is_relative_to(own_store.root / "staging")
    build(own_store, variant(commands=("true",)))
    assert not log.exists()


def test_an_image_that_is_refused_is_not_there(own_store: ImageStore, variant: Variant) -> None:
    seen: list[Image] = []

    def refuse(image: Image) -> None:
        seen.append(image)
        assert image.rootfs.is_file() and image.vmlinuz.is_file()
        raise ImageError("it does not boot")

    recipe = variant()
    with pytest.raises(ImageError, match="does not boot"):
        build_image(own_store, recipe, architecture=platform.machine(), verify=refuse)
    assert own_store.get(seen[0].key) is None and not (own_store.root / seen[0].key).exists()
    assert build_image(own_store, recipe, architecture=platform.machine(), verify=seen.append) == own_store.get(
        seen[0].key
    )
    assert [image.key for image in seen] == [seen[0].key] * 2


def test_offline_has_no_network(own_store: ImageStore, variant: Variant) -> None:
    """Not a promise of the programs: there is nothing to send through."""
    recipe = variant(commands=("cat /proc/net/dev > /etc/links",))
    image = build(own_store, recipe, offline=True)
    key = image.key
    links = subprocess.run(
        ["unsquashfs", "-cat", own_store.root / key / "rootfs.squashfs", "etc/links"], capture_output=True, text=True
    )
    assert [line.split(":")[0].strip() for line in links.stdout.splitlines()[2:]] == ["lo"]


def test_offline_without_packages_says_what_to_do(tmp_path: pathlib.Path, variant: Variant) -> None:
    with pytest.raises(BuildError, match="installing packages") as caught:
        build(ImageStore(tmp_path / "empty"), variant(), offline=True)
    assert "--from" in caught.value.hint
    assert mounts_below(tmp_path) == []


def test_two_builds_at_once_make_one(own_store: ImageStore, variant: Variant, tmp_path: pathlib.Path) -> None:
    recipe = file_of(variant(), tmp_path)
    processes = [start_build(own_store, recipe) for _ in range(2)]
    answers = [process.communicate(timeout=200)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0][-1] == answers[1][-1]
    assert sorted("packing the root file system" in answer for answer in answers) == [False, True]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_build(own_store: ImageStore, variant: Variant, tmp_path: pathlib.Path, number: int) -> None:
    """Whoever ends it: its programs end with it, nothing is mounted, and what is left goes with the next build."""
    mark = tmp_path.name
    recipe = file_of(variant(commands=(f"mkdir /run/{mark}; echo {mark}-started; sleep 1000",)), tmp_path)
    with start_build(own_store, recipe) as process:
        try:
            wait_for(lambda: any(f"{mark}-started" in text for text in logs(own_store)), 200)
            assert sleepers(mark)
            process.send_signal(number)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode != 0
    wait_for(lambda: not sleepers(mark), 10)
    assert mounts_below(own_store.root) == []
    left = list((own_store.root / "staging").iterdir())
    assert left
    build(own_store, variant(commands=("true",)))
    assert not any(path.exists() for path in left)


def file_of(recipe: Recipe, folder: pathlib.Path) -> str:
    """The recipe as a file, for another process; `base` without its users, so that nothing is said twice."""
    lines = [f"name = {json.dumps(recipe.name)}", f"suite = {json.dumps(recipe.suite)}"]
    lines += [f"{key} = {json.dumps(list(getattr(recipe, key)))}" for key in ("packages", "commands")]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def start_build(store: ImageStore, recipe: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", BUILD, str(store.root), recipe, platform.machine()]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def logs(store: ImageStore) -> list[str]:
    found = []
    for path in (store.root / "staging").glob("*/build.log"):
        with contextlib.suppress(FileNotFoundError):
            # the command line itself is in the log too
            found.append("\n".join(line for line in path.read_text().splitlines() if "$ setpriv" not in line))
    return found


def sleepers(mark: str) -> list[int]:
    """Processes of the recipe's command."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and mark.encode() in pathlib.Path(f"/proc/{entry}/cmdline").read_bytes():
                if f"echo {mark}-started".encode() in pathlib.Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
    return found


def wait_for(holds: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
