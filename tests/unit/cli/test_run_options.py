"""From the texts of the command line to the parts of a run."""

from __future__ import annotations

import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.cli.errors import UsageError
from vm0.cli.run_options import folder_mount, storage_name, variables
from vm0.contracts import names


@pytest.mark.parametrize(
    ("text", "folder", "mount"),
    [
        ("dir", "dir", "/home/user/workspace"),
        (".", ".", "/home/user/workspace"),
        ("dir:/work", "dir", "/work"),
        ("a:b:/work", "a:b", "/work"),
        ("a:b", "a:b", "/home/user/workspace"),
        ("/abs/dir:/mnt/x y", "/abs/dir", "/mnt/x y"),
    ],
)
def test_folder_mount(text: str, folder: str, mount: str) -> None:
    found = folder_mount(text, "--artifact", names.DEFAULT_WORKING_DIR)
    assert (str(found.folder), found.mount_path) == (folder, mount)


@pytest.mark.parametrize("text", ["", ":/work", "dir:/", "dir:/a//b", "dir:/a/./b", "dir:/a/..", "dir:/a\0"])
def test_folder_mount_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--storage"):
        folder_mount(text, "--storage")


def test_variables_take_values_as_they_are_and_the_last_one_wins() -> None:
    found = variables(["A=1", "B=x=y z", "A=2", "C=", "HOME"], "--env", {"HOME": "/h"})
    assert found == {"A": "2", "B": "x=y z", "C": "", "HOME": "/h"}


@pytest.mark.parametrize("text", ["=x", "1A=x", "A-B=x", "", "MISSING"])
def test_variables_refuse(text: str) -> None:
    with pytest.raises(UsageError, match="--env"):
        variables([text], "--env", {})


@given(name=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=80))
def test_every_folder_has_a_valid_storage_name(name: str) -> None:
    assert re.fullmatch(names.STORAGE_NAME, storage_name(pathlib.Path("/base", name)))


def test_storage_names_follow_the_real_folder(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "same").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "same")
    first, second = storage_name(tmp_path / "a" / "same"), storage_name(tmp_path / "b" / "same")
    assert first != second
    assert first.startswith("same-")
    assert storage_name(tmp_path / "link") == first
    assert storage_name(tmp_path / "a" / "." / "same") == first
    assert re.fullmatch(names.STORAGE_NAME, storage_name(pathlib.Path("/")))
