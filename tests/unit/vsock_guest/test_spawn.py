"""Finding a program as execvp does, and what the fast way leaves as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vm0.vsock_guest.spawn import find_program


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    return first, second


def program(path: Path, mode: int) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def test_a_name_with_a_slash_is_taken_as_it_is() -> None:
    assert find_program("./no/such", "") == "./no/such"


def test_the_first_executable_file_of_the_path_wins(folders: tuple[Path, Path]) -> None:
    first, second = folders
    program(second / "tool", 0o755)
    (first / "tool").mkdir()  # a folder of that name is none
    assert find_program("tool", f"{first}:{second}") == str(second / "tool")
    program(first / "other", 0o755)
    program(second / "other", 0o755)
    assert find_program("other", f"{first}:{second}") == str(first / "other")


def test_what_is_missing_and_what_may_not_be_run_are_told_apart(folders: tuple[Path, Path]) -> None:
    first, second = folders
    program(first / "tool", 0o644)
    for name, code in (("tool", errno.EACCES), ("none", errno.ENOENT)):
        with pytest.raises(OSError, match=name) as caught:
            find_program(name, f"{first}:{second}")
        assert caught.value.errno == code


def test_an_empty_part_of_the_path_is_the_current_folder(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(folders[0] / "tool", 0o755)
    monkeypatch.chdir(folders[0])
    found = find_program("tool", "")
    assert os.path.samefile(found, folders[0] / "tool")
