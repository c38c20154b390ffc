"""guest.pyz: the same bytes for the same sources, whole or not there, and runnable by any interpreter from 3.11 on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vm0.guest_bundle import BundleError, GuestBundle, build, build_bundle
from vm0.guest_bundle.entry import PROGRAMS

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
BUILD = """
import sys, pathlib
from vm0.guest_bundle import build_bundle
print(build_bundle(pathlib.Path(sys.argv[1])).path)
"""
# As a long-lived runner may be: marshal writes a text of one letter in another way once somebody has interned it.
BUSY_BUILD = "import sys; held = [sys.intern(chr(number)) for number in range(256)]\n" + BUILD
# An interpreter with another magic number: python [-I -S] -c PROGRAM
FOREIGN = "import importlib.util, sys; importlib.util.MAGIC_NUMBER = bytes([255, 255, 13, 10]); exec(sys.argv[-1])"
IMPORT_ALL = """
import importlib, json, sys, zipfile
sys.path.insert(0, sys.argv[1])
names = [n[:-3].replace("/", ".").removesuffix(".__init__") for n in zipfile.ZipFile(sys.argv[1]).namelist()
         if n.endswith(".py") and n != "__main__.py"]
modules = [importlib.import_module(name) for name in names]
print(json.dumps({"files": [module.__file__ for module in modules], "path": sys.path}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> GuestBundle:
    return build_bundle(tmp_path_factory.mktemp("bundle"))


def run(*argv: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *argv], capture_output=True, text=True, env=ENVIRONMENT | environment, timeout=60, check=False
    )


def other_interpreters() -> list[str]:
    """Pythons of another minor version on this machine that the guest code supports."""
    found = [shutil.which(f"python3.{minor}") or "" for minor in range(11, 20)]
    found += [str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python3")]
    versions = {}
    for python in filter(None, found):
        answer = run("-c", "import sys; print(sys.version_info[:2] >= (3, 11), sys.version_info[1])", python=python)
        supported, _, minor = answer.stdout.strip().partition(" ")
        if supported == "True" and int(minor) != sys.version_info.minor:
            versions[minor] = python
    return list(versions.values())


def test_the_same_bytes_in_two_caches(bundle: GuestBundle, tmp_path: Path) -> None:
    again = build_bundle(tmp_path / "a" / "b")
    assert again.build == bundle.build and again.path.name == bundle.path.name
    assert again.path.read_bytes() == bundle.path.read_bytes()


@pytest.mark.parametrize(("program", "seed"), [(BUILD, "0"), (BUILD, "77"), (BUSY_BUILD, "1")])
def test_the_same_bytes_from_any_process(bundle: GuestBundle, tmp_path: Path, program: str, seed: str) -> None:
    """Neither the order of hashes nor what else the process has loaded is in the file."""
    done = run("-c", program, str(tmp_path), PYTHONHASHSEED=seed)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == bundle.path.read_bytes()


def test_a_bundle_that_is_there_is_used(bundle: GuestBundle) -> None:
    before = bundle.path.stat()
    assert build_bundle(bundle.path.parent) == bundle
    assert (bundle.path.stat().st_ino, bundle.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_processes_that_build_at_once(bundle: GuestBundle, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: run("-c", BUILD, str(tmp_path)), range(6)))
    assert [one.returncode for one in done] == [0] * 6, done
    assert {one.stdout.strip() for one in done} == {str(tmp_path / bundle.path.name)}
    assert [path.name for path in tmp_path.iterdir()] == [bundle.path.name]
    assert (tmp_path / bundle.path.name).read_bytes() == bundle.path.read_bytes()


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_sources: object, file: object, *, python: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_bundle", full)
    with pytest.raises(OSError, match="No space"):
        build_bundle(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_build_names_the_sources() -> None:
    sources = build.read_sources()
    name = "vm0/vsock_guest/main.py"
    assert build.digest(sources) == build.digest(dict(sources))
    assert build.digest(sources) != build.digest(sources | {name: sources[name] + b"\n"})
    assert build.digest({"ab": b"c"}) != build.digest({"a": b"bc"})


def test_what_is_in_it(bundle: GuestBundle) -> None:
    with zipfile.ZipFile(bundle.path) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        assert archive.testzip() is None
    sources = [name for name in names if name.endswith(".py")]
    assert sorted(names) == sorted(sources + [f"{name}c" for name in sources])
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {info.date_time for info in infos} == {build.TIMESTAMP}
    packages = {name.split("/")[1] for name in sources if name.count("/") > 1}
    assert packages == {name for name in build.PACKAGES if (build.SOURCE_ROOT / "vm0" / name).is_dir()}
    assert not build.NOT_FOR_GUESTS & set(sources)
    for module in PROGRAMS.values():
        assert f"{module.replace('.', '/')}.py" in sources
    assert bundle.path.stat().st_mode & 0o777 == 0o644


def test_every_module_is_importable_without_a_site(bundle: GuestBundle) -> None:
    """By this interpreter from the bytecode, by the others that this machine has from the source."""
    for python, suffix in [(sys.executable, ".pyc"), *((other, ".py") for other in other_interpreters())]:
        done = run("-I", "-S", "-W", "error", "-c", IMPORT_ALL, str(bundle.path), python=python)
        assert done.returncode == 0, f"{python}: {done.stderr}"
        answer = json.loads(done.stdout)
        assert {Path(file).suffix for file in answer["files"]} == {suffix}, python
        assert not [path for path in answer["path"] if "site-packages" in path]


def test_the_bytecode_is_of_the_interpreter_that_is_asked_for(bundle: GuestBundle, tmp_path: Path) -> None:
    """As with a guest's of another version, of which this machine may have none: other interpreters run the source."""
    foreign_python = tmp_path / "python"
    foreign_python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{FOREIGN}' \"$@\"\n")
    foreign_python.chmod(0o755)
    foreign = build_bundle(tmp_path / "cache", python=[str(foreign_python)])
    assert foreign.path.name != bundle.path.name and foreign.build == bundle.build
    done = run("-I", "-S", "-c", IMPORT_ALL, str(foreign.path))
    assert done.returncode == 0, done.stderr
    assert {Path(file).suffix for file in json.loads(done.stdout)["files"]} == {".py"}


def test_sources_that_do_not_compile_are_named() -> None:
    with pytest.raises(BundleError, match=r"(?s)do not compile.*broken\.py.*SyntaxError"):
        build.compiled({"good.py": b"x = 1", "broken.py": b"def f(:"})


@pytest.mark.parametrize("argv", [[], ["no-such-program"], ["vsock_guest"], [""]])
def test_an_unknown_program_is_told_the_known_ones(bundle: GuestBundle, argv: list[str]) -> None:
    done = run("-I", "-S", str(bundle.path), *argv)
    assert done.returncode == 2
    assert done.stderr == f"usage: guest.pyz {'|'.join(PROGRAMS)} [arguments]\n"


def test_a_program_gets_its_arguments(bundle: GuestBundle) -> None:
    done = run("-I", "-S", str(bundle.path), "vsock-guest", "--connect", "nowhere")
    assert done.returncode == 2
    assert "'nowhere' is not vsock:CID:PORT" in done.stderr


@pytest.mark.parametrize(
    "source",
    [
        "import aiohttp",
        "def f():\n    from rich.text import Text",
        "import os, pydantic.main",
        "from vm0.server import app",
        "from vm0.vsock_proto import no_module_of_ours\nimport vm0.vsock_proto.documentation",
        "from . import sibling",
    ],
)
def test_an_import_that_no_guest_has_is_refused(source: str) -> None:
    sources = build.read_sources() | {"vm0/guest_agent/new.py": source.encode()}
    with pytest.raises(BundleError, match=r"new\.py imports"):
        build.check_imports(sources)


def test_imports_of_the_bundle_and_the_standard_library_pass() -> None:
    source = b"import os.path\nfrom vm0.vsock_proto.codec import Message\nimport vm0.guest_common\nfrom xml import sax"
    build.check_imports(build.read_sources() | {"vm0/guest_agent/new.py": source})


@pytest.mark.parametrize("name", ["fast.cpython-311-x86_64-linux-gnu.so", "deep/fast.abi3.so", "lib.pyd"])
def test_native_code_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "module.py").write_text("x = 1\n")
    assert build.python_files(tmp_path) == [tmp_path / "module.py"]
    (tmp_path / name).write_bytes(b"\x7fELF")
    with pytest.raises(BundleError, match="native code"):
        build.python_files(tmp_path)
