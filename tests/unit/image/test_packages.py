"""What mmdebstrap is asked for, the repository made from a directory of packages, and dpkg's record."""

from __future__ import annotations

import hashlib
import pathlib
import platform
import shutil
import subprocess

import pytest

from tests.support.capabilities import require
from vm0.image import packages
from vm0.image.architectures import ARCHITECTURES
from vm0.image.command import Commands
from vm0.image.errors import BuildError
from vm0.image.recipe import Recipe, load_recipe

AMD64 = ARCHITECTURES["x86_64"]
RECIPE = Recipe(name="mine", suite="trixie", packages=("jq", "git"), mirrors=("deb mirror://x trixie main",))


def argv(recipe: Recipe = RECIPE, sources: str = "", mirrors: tuple[str, ...] = ()) -> tuple[str, ...]:
    wanted = packages.package_set(recipe, AMD64, sources)
    place = pathlib.Path("/a b")
    return packages.mmdebstrap_argv(
        wanted, tree=place / "tree", script=place / "hook", sources=place / "sources", mirrors=mirrors or wanted.mirrors
    )


def test_what_mmdebstrap_is_asked_for() -> None:
    found = argv()
    assert "--include=git,jq,kmod,passwd,python3-minimal" in found
    assert "--architectures=amd64" in found
    assert found[-3:] == ("trixie", "/a b/tree", "deb mirror://x trixie main")
    hook = next(word for word in found if word.startswith("--customize-hook="))
    assert hook == "--customize-hook=sh '/a b/hook' \"$1\" '/a b/sources' linux-image-cloud-amd64"


def test_no_mirror_is_named_unless_the_recipe_does() -> None:
    """Then mmdebstrap takes the suite's usual one."""
    assert argv(load_recipe("base"))[-1] == "/a b/tree"
    assert not [word for word in argv(load_recipe("base")) if "://" in word]


def test_a_directory_of_packages_replaces_the_mirrors() -> None:
    wanted = packages.package_set(RECIPE, AMD64, "digest")
    assert wanted.mirrors == ()
    assert wanted != packages.package_set(RECIPE, AMD64)


def deb(
    folder: pathlib.Path, name: str, architecture: str = "all", version: str = "1.0", essential: bool = False
) -> None:
    build = folder / "build"
    (build / "DEBIAN").mkdir(parents=True)
    (build / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: us <us@example.org>\n"
        + ("Essential: yes\n" if essential else "")
        + f"Description: {name}\n more\n"
    )
    target = folder / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", build, target], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(build)


@pytest.fixture
def commands(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Without a container, which only root can make."""
    require(shutil.which("dpkg-deb") is not None, "dpkg-deb is not installed")
    monkeypatch.setattr("vm0.image.command.container", lambda offline: ())
    return Commands(log=tmp_path / "log")


def test_a_repository_from_a_directory(tmp_path: pathlib.Path, commands: Commands) -> None:
    """apt finds the packages of this architecture, and which of them are essential, by suite."""
    debs = tmp_path / "de bs"
    debs.mkdir()
    deb(debs, "one", essential=True)
    deb(debs, "two", "amd64", "1:2.0")
    deb(debs, "three", "arm64")
    (debs / "other.tgz").touch()
    line = packages.flat_repository(tmp_path / "re pository", debs, packages.package_set(RECIPE, AMD64, "x"), commands)
    assert line == f"deb [trusted=yes] copy:{tmp_path}/re%20pository ./"
    index = (tmp_path / "re pository/Packages").read_text()
    entries = [
        dict(line.split(": ", 1) for line in entry.splitlines() if line[0] != " ") for entry in index.split("\n\n")
    ]
    assert [(entry["Package"], entry.get("Essential")) for entry in entries] == [("one", "yes"), ("two", None)]
    for entry in entries:
        content = (tmp_path / "re pository" / entry["Filename"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), str(len(content))) == (entry["SHA256"], entry["Size"])
    release = (tmp_path / "re pository/Release").read_text()
    assert "Codename: trixie\n" in release
    assert f"{hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages" in release


def test_a_directory_without_packages_is_named(tmp_path: pathlib.Path, commands: Commands) -> None:
    (tmp_path / "debs").mkdir()
    with pytest.raises(BuildError, match=r"has no packages \(\*\.deb\) for amd64") as caught:
        packages.flat_repository(tmp_path / "r", tmp_path / "debs", packages.package_set(RECIPE, AMD64, "x"), commands)
    assert "--save-sources" in caught.value.hint


def test_the_digest_of_a_directory_is_of_names_and_contents(tmp_path: pathlib.Path) -> None:
    def digest() -> str:
        return packages.digest_of_files(tmp_path, "*.deb")

    empty = digest()
    (tmp_path / "a.deb").write_bytes(b"1")
    one = digest()
    (tmp_path / "a.deb").write_bytes(b"2")
    two = digest()
    (tmp_path / "a.deb").rename(tmp_path / "b.deb")
    three = digest()
    (tmp_path / "x.tgz").write_bytes(b"other kind")
    assert len({empty, one, two, three}) == 4
    assert digest() == three


def test_installed_packages(tmp_path: pathlib.Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.3\nDescription: x\n Version: no field\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: apt\nStatus: install ok installed\nVersion: 3.0\n"
    )
    assert packages.installed_packages(tmp_path) == {"apt": "3.0", "zlib1g": "1:1.3"}


def test_a_machine_that_cannot_run_the_guests_programs_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "BINFMT", tmp_path)
    own = ARCHITECTURES.get(platform.machine())
    foreign = next(row for row in ARCHITECTURES.values() if row is not own)
    for state in ("", "disabled\n"):
        if state:
            (tmp_path / foreign.emulator).write_text(state)
        with pytest.raises(BuildError, match=f"cannot run programs for {foreign.name}") as caught:
            packages.check_emulation(foreign)
        assert "qemu-user-static" in caught.value.hint
    (tmp_path / foreign.emulator).write_text("enabled\ninterpreter /usr/bin/x\n")
    packages.check_emulation(foreign)
    if own is not None:
        packages.check_emulation(own)
