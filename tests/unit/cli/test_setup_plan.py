"""What `vm0 setup` does to a machine, from what it found: facts in, actions out."""

from __future__ import annotations

import pathlib
import platform

import pytest

from vm0.cli.setup_plan import (
    Install,
    MachineFacts,
    Purpose,
    Refuse,
    is_debian,
    needs,
    parse_os_release,
    plan_packages,
)
from vm0.image.build import PROGRAMS
from vm0.sandbox_qemu.machines import MACHINES

BOOKWORM = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
# a comment
ID=debian
HOME_URL='https://www.debian.org/'
"""
ALL = frozenset(need.program for need in needs("x86_64"))


def facts(**changes: object) -> MachineFacts:
    """A machine with root where nothing is missing."""
    known: dict[str, object] = {
        "system": "Linux", "architecture": "x86_64", "python": (3, 11, 2), "root": True,
        "os_release": parse_os_release(BOOKWORM), "present": ALL, "has_tun": True,
    }  # fmt: skip
    return MachineFacts(**{**known, **changes})  # type: ignore[arg-type]


def test_a_machine_that_has_all_needs_nothing() -> None:
    assert plan_packages(facts()) == []


def test_a_fresh_debian_gets_each_package_once_with_its_reason() -> None:
    present = frozenset({"apt-get", "dpkg-deb", "tar", "chroot"})
    (action,) = plan_packages(facts(present=present), purposes={Purpose.RUN, Purpose.BUILD})
    assert isinstance(action, Install)
    assert list(action.packages) == [
        "qemu-system-x86", "e2fsprogs", "nftables", "iproute2", "mmdebstrap", "squashfs-tools", "util-linux",
        "debian-archive-keyring",
    ]  # fmt: skip
    assert all(action.packages.values())
    assert action.command[:3] == ("apt-get", "install", "--yes") and "mmdebstrap" in action.command


def test_a_machine_that_builds_no_image_needs_less() -> None:
    lacking = facts(present=ALL - {"mmdebstrap", "nft"})
    assert plan_packages(lacking, purposes=[Purpose.RUN]) == [
        Install({"nftables": "the firewall of each virtual machine"})
    ]
    assert plan_packages(facts(present=ALL - {"mmdebstrap"}), purposes=[Purpose.RUN]) == []
    assert plan_packages(facts(present=ALL - {"npm"}), purposes=[Purpose.RUN, Purpose.BUILD]) == []
    (action,) = plan_packages(facts(present=ALL - {"npm"}), purposes=Purpose)
    assert isinstance(action, Install) and list(action.packages) == ["npm"]


def test_the_architecture_decides_which_qemu() -> None:
    (action,) = plan_packages(facts(architecture="aarch64"))  # what is there are the programs for x86_64
    assert isinstance(action, Install) and list(action.packages) == ["qemu-system-arm"]


@pytest.mark.parametrize(
    ("changes", "said", "next_step"),
    [
        ({"system": "Darwin"}, "this is Darwin", "--server"),
        ({"architecture": "riscv64"}, "riscv64 is not supported", "x86_64"),
        ({"python": (3, 9, 2)}, "Python 3.9.2 is too old", "3.11"),
        ({"root": False}, "need root", "sudo"),
        ({"has_tun": False}, "/dev/net/tun", "modprobe tun"),
    ],
)
def test_what_cannot_be_helped_is_refused(changes: dict[str, object], said: str, next_step: str) -> None:
    (action,) = plan_packages(facts(**changes))
    assert isinstance(action, Refuse)
    assert said in action.problem and next_step in action.hint


def test_offline_names_what_to_install() -> None:
    (action,) = plan_packages(facts(present=ALL - {"mksquashfs"}), offline=True)
    assert isinstance(action, Refuse)
    assert "mksquashfs" in action.problem and "squashfs-tools" in action.hint


@pytest.mark.parametrize("text", ['ID=fedora\nPRETTY_NAME="Fedora Linux 43"', "ID=arch", "", "nonsense"])
def test_another_distribution_is_told_exactly_what(text: str) -> None:
    found = facts(os_release=parse_os_release(text), present=frozenset({"apt-get"}))
    (action,) = plan_packages(found)
    assert isinstance(action, Refuse)
    assert found.distribution in action.problem
    for need in needs("x86_64"):
        assert need.program == "apt-get" or (need.program in action.hint and need.package in action.hint)


def test_a_debian_without_apt_is_told_as_well() -> None:
    (action,) = plan_packages(facts(present=ALL - {"apt-get", "nft"}))
    assert isinstance(action, Refuse) and "nftables" in action.hint


@pytest.mark.parametrize(
    ("text", "debian"),
    [
        (BOOKWORM, True),
        ("ID=ubuntu\nID_LIKE=debian", True),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', True),
        ("ID=raspbian\nID_LIKE=debian", True),
        ("ID=fedora", False),
        ('ID=rocky\nID_LIKE="rhel centos fedora"', False),
        ("", False),
    ],
)
def test_who_has_debians_package_names(text: str, debian: bool) -> None:
    assert is_debian(parse_os_release(text)) is debian


def test_os_release_is_read_with_its_quotes() -> None:
    found = parse_os_release(
        BOOKWORM + 'EMPTY=\nNAME WITH SPACE=x\n  INDENTED=yes\nESCAPED="a \\"b\\" \\$c"\nno equals\n'
    )
    assert found == {
        "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)", "NAME": "Debian GNU/Linux", "VERSION_ID": "12",
        "ID": "debian", "HOME_URL": "https://www.debian.org/", "EMPTY": "", "INDENTED": "yes",
        "ESCAPED": 'a "b" $c',
    }  # fmt: skip


def test_this_machines_own_os_release_is_understood() -> None:
    path = pathlib.Path("/etc/os-release")
    if path.exists():
        assert parse_os_release(path.read_text())["ID"] == platform.freedesktop_os_release()["ID"]


@pytest.mark.parametrize("architecture", sorted(MACHINES))
def test_the_table_has_what_the_components_ask_for(architecture: str) -> None:
    found = {need.program: need.package for need in needs(architecture)}
    assert {program: found.get(program) for program in PROGRAMS} == PROGRAMS
    assert found[MACHINES[architecture].binary] == MACHINES[architecture].package
    assert {"mkfs.ext4", "nft"} <= found.keys()
    assert len(found) == len(needs(architecture))
