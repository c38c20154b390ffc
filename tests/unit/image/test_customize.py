"""npm packages: which archive is taken, where it goes, and what is said when there is none."""

from __future__ import annotations

import io
import json
import os
import pathlib
import tarfile

import pytest

from tests.support.capabilities import require
from vm0.image import customize
from vm0.image.command import Commands
from vm0.image.errors import BuildError
from vm0.image.recipe import NpmPackage

NAME = "@scope/tool-linux-x64"


@pytest.fixture
def commands(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Without a container, which only root can make, and without npm."""
    monkeypatch.setattr("vm0.image.command.container", lambda offline: ())
    monkeypatch.setattr("vm0.image.customize.missing_program", lambda *names: names[0])
    return Commands(log=tmp_path / "log")


def archive(folder: pathlib.Path, version: str, files: dict[str, bytes], name: str = NAME) -> pathlib.Path:
    path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for file, content in {"package.json": json.dumps({"version": version}).encode(), **files}.items():
            info = tarfile.TarInfo(f"package/{file}")
            info.size, info.mtime, info.uid = len(content), 499162500, 501
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [("latest", "2.10.0"), ("next", "2.10.0"), ("2.9.1", "2.9.1"), ("2.10.0-rc.1", "2.10.0-rc.1")],
)
def test_which_archive_of_a_directory_is_taken(
    tmp_path: pathlib.Path, commands: Commands, wanted: str, taken: str
) -> None:
    """A tag cannot be looked up there: it means the newest, and a release is newer than its candidates."""
    (source := tmp_path / "from").mkdir()
    (target := tmp_path / "to").mkdir()
    for version in ("2.9.1", "2.10.0-rc.1", "2.10.0"):
        archive(source, version, {})
    archive(source, "9.9.9", {}, name="@scope/tool-linux-x64-musl")
    found = customize.fetched(NAME, wanted, target, source, commands)
    assert found == target / f"scope-tool-linux-x64-{taken}.tgz"


def test_a_version_that_is_not_in_the_directory(tmp_path: pathlib.Path, commands: Commands) -> None:
    archive(tmp_path, "1.0.0", {})
    offline = Commands(log=commands.log, offline=True)
    for where in (tmp_path, None):
        with pytest.raises(BuildError) as caught:
            customize.fetched(NAME, "1.0.1", tmp_path, where, offline)
        assert "--from" in caught.value.hint


def test_no_npm_is_an_error_with_the_next_step(tmp_path: pathlib.Path, commands: Commands) -> None:
    with pytest.raises(BuildError, match="npm is not installed") as caught:
        customize.fetched(NAME, "latest", tmp_path, None, commands)
    assert "apt-get install npm" in caught.value.hint and "--from" in caught.value.hint


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    require(os.geteuid() == 0, "files of a guest belong to root")
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def test_a_package_is_unpacked_and_linked(tmp_path: pathlib.Path, tree: pathlib.Path, commands: Commands) -> None:
    file = archive(tmp_path, "1.2.3", {"bin/tool": b"\x7fELF"})
    package = NpmPackage(package="@scope/tool-linux-{cpu}", bin={"tool": "bin/tool"})
    assert customize.unpack_npm(tree, NAME, package, file, commands) == "1.2.3"
    program = tree / "opt/npm/@scope/tool-linux-x64/bin/tool"
    assert (program.read_bytes(), program.stat().st_mode & 0o777, program.stat().st_uid) == (b"\x7fELF", 0o755, 0)
    assert os.readlink(tree / "usr/local/bin/tool") == "/opt/npm/@scope/tool-linux-x64/bin/tool"


@pytest.mark.parametrize(("path", "said"), [("bin/other", "has no file bin/other"), ("link", "has no file link")])
def test_a_command_that_is_no_file_of_the_package(
    tmp_path: pathlib.Path, tree: pathlib.Path, commands: Commands, path: str, said: str
) -> None:
    file = archive(tmp_path, "1.2.3", {"bin/tool": b""})
    with tarfile.open(tmp_path / "more.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    if path == "link":
        file = tmp_path / "more.tgz"
    with pytest.raises(BuildError, match=said):
        customize.unpack_npm(tree, NAME, NpmPackage(package=NAME, bin={"tool": path}), file, commands)


def test_a_command_that_is_there_already(tmp_path: pathlib.Path, tree: pathlib.Path, commands: Commands) -> None:
    (tree / "usr/local/bin").mkdir(parents=True)
    (tree / "usr/local/bin/tool").symlink_to("/nowhere")
    file = archive(tmp_path, "1.2.3", {"tool": b""})
    with pytest.raises(BuildError, match="has a command tool already"):
        customize.unpack_npm(tree, NAME, NpmPackage(package=NAME, bin={"tool": "tool"}), file, commands)


def test_owners_are_the_guests(tmp_path: pathlib.Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1002::/home/user:/bin/bash\n")
    assert customize.owner_in(tmp_path, "user") == (1000, 1002)
    with pytest.raises(BuildError, match="no user daemon"):
        customize.owner_in(tmp_path, "daemon")
