"""/etc/environment, and what of it a user's environment has."""

from __future__ import annotations

import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.vsock_guest.identity import PATH, Identity, environment_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ('A="quoted value"', {"A": "quoted value"}),
        ('A="half', {"A": '"half'}),
        ('A="', {"A": '"'}),
        ('A=""', {"A": ""}),
        ("  A = 1  ", {"A": "1"}),
        ("export A=1", {"A": "1"}),
        ("A=b=c", {"A": "b=c"}),
        ("A=", {"A": ""}),
        ("A=1\nA=2", {"A": "2"}),
        ("# A=1\n\nno equals sign\n=value\n1A=x\nA-B=x\nÄ=x\n", {}),
        ("A=x\0y", {}),
    ],
)
def test_lines(text: str, found: dict[str, str]) -> None:
    assert environment_of(text) == found


@given(st.text())
def test_any_text_gives_what_a_process_can_have(text: str) -> None:
    for name, value in environment_of(text).items():
        assert name.isidentifier() and "\0" not in value


def test_a_file_changes_the_machines_part_and_not_who_somebody_is() -> None:
    account = pwd.getpwuid(os.getuid())
    said = {"LANG": "de_DE.UTF-8", "HOME": "/elsewhere", "USER": "other", "NEW": "1"}
    environment = Identity(account, False, said).environment
    assert (environment["LANG"], environment["NEW"], environment["PATH"]) == ("de_DE.UTF-8", "1", PATH)
    assert (environment["HOME"], environment["USER"]) == (account.pw_dir, account.pw_name)
