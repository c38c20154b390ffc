"""What of the caller's environment is in a build, the table of architectures, and the script of PID 1."""

from __future__ import annotations

import dataclasses

import pytest

from vm0.guest_init import init_script
from vm0.image.architectures import ARCHITECTURES, architecture
from vm0.image.config import SYSTEM_PATH, build_environment
from vm0.image.errors import ImageError
from vm0.image.guest_files import GuestCode
from vm0.image.keys import KEY, digest_of, image_key
from vm0.image.recipe import Recipe
from vm0.microvm.guest import BUNDLE_PATH, GUEST_PYTHON


def test_a_build_sees_little_of_the_environment() -> None:
    found = build_environment(
        {
            "PATH": "/opt/bin",
            "HOME": "/root",
            "https_proxy": "http://proxy:3128",
            "npm_config_cache": "/cache",
            "PYTHONPATH": "/evil",
            "SOURCE_DATE_EPOCH": "7",
            "APT_CONFIG": "/evil",
            "LC_ALL": "de_DE",
            "ANTHROPIC_API_KEY": "secret",
        }
    )
    assert found["PATH"] == f"/opt/bin:{SYSTEM_PATH}"  # a user's may lack the programs of root
    assert (found["https_proxy"], found["npm_config_cache"], found["LC_ALL"]) == (
        "http://proxy:3128",
        "/cache",
        "C.UTF-8",
    )
    assert not {"PYTHONPATH", "SOURCE_DATE_EPOCH", "APT_CONFIG", "ANTHROPIC_API_KEY"} & set(found)
    assert build_environment({})["PATH"] == SYSTEM_PATH


def test_architectures_by_both_names() -> None:
    assert architecture("x86_64") is architecture("amd64")
    assert architecture("aarch64") is architecture("arm64")
    with pytest.raises(ImageError, match="riscv64") as caught:
        architecture("riscv64")
    assert caught.value.hint == "choose one of x86_64, aarch64"


def test_the_rows_differ_in_all() -> None:
    rows = [dataclasses.astuple(row) for row in ARCHITECTURES.values()]
    for column in zip(*rows, strict=True):
        assert len(set(column)) == len(column)


def test_pid_1_is_started_with_our_interpreter_and_bundle() -> None:
    """The guest's code cannot import the constants of the host; they say the same."""
    assert init_script.SCRIPT.startswith(f"#!{GUEST_PYTHON} -IS\n")
    assert init_script.BUNDLE_PATH == BUNDLE_PATH


def test_keys_say_what_an_image_is_made_from() -> None:
    recipe = Recipe(name="a", suite="trixie")
    keys = {
        image_key(recipe, "x86_64", "0"),
        image_key(recipe, "aarch64", "0"),
        image_key(recipe, "x86_64", "1"),
        image_key(Recipe(name="b", suite="trixie"), "x86_64", "0"),
        image_key(Recipe(name="a", suite="trixie", packages=("git",)), "x86_64", "0"),
    }
    assert len(keys) == 5
    assert all(KEY.fullmatch(key) for key in keys)
    assert image_key(recipe, "amd64", "0") in keys
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_the_guest_code_of_an_image_is_of_one_moment() -> None:
    code = GuestCode()
    assert GuestCode({**code.sources, "vm0/guest_init/main.py": b"changed"}).build != code.build
    assert GuestCode(code.sources).build == code.build
    assert "vm0/guest_init/main.py" in code.sources
