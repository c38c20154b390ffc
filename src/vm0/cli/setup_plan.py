"""What a machine needs for virtual machines, as one table, and what to do about what it lacks: facts in, actions out.

Pure: `setup_apply` finds the facts and does the actions.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OLDEST_PYTHON = (3, 11)
QEMU_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
DEBIAN_FAMILY = frozenset({"debian", "ubuntu"})
ESCAPED = re.compile(r"""\\([\\$"'`])""")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Purpose(enum.Enum):
    """What a program is needed for: a machine that only runs images which came from elsewhere needs fewer."""

    RUN = "run"
    BUILD = "build"
    NPM = "npm"  # to build an image whose recipe has npm packages


@dataclass(frozen=True, slots=True)
class Need:
    """A program (or, with a slash, a file), the Debian package that has it, and what it is for."""

    program: str
    package: str
    why: str
    purpose: Purpose


def needs(architecture: str) -> tuple[Need, ...]:
    """The table. Of a package with several programs, one stands for it."""
    run, build = Purpose.RUN, Purpose.BUILD
    qemu = QEMU_PACKAGES.get(architecture, QEMU_PACKAGES["x86_64"])
    return (
        Need(f"qemu-system-{architecture}", qemu, "the virtual machine monitor", run),
        Need("mkfs.ext4", "e2fsprogs", "the writable disk of each virtual machine", run),
        Need("nft", "nftables", "the firewall of each virtual machine", run),
        Need("ip", "iproute2", "shows the network of each virtual machine (`ip netns`)", run),
        Need("mmdebstrap", "mmdebstrap", "installs the guest's packages into an image", build),
        Need("mksquashfs", "squashfs-tools", "packs an image's root file system", build),
        Need("apt-get", "apt", "fetches the guest's packages", build),
        Need("dpkg-deb", "dpkg", "unpacks the guest's kernel", build),
        Need("tar", "tar", "unpacks what an image gets besides packages", build),
        Need("unshare", "util-linux", "keeps the programs of a build apart", build),
        Need("setpriv", "util-linux", "takes all rights from a virtual machine monitor", run),
        Need("chroot", "coreutils", "runs the guest's own programs in a build", build),
        Need(KEYRING, "debian-archive-keyring", "knows that the guest's packages are Debian's", build),
        Need("npm", "npm", "fetches an image's npm packages; it is not in the image", Purpose.NPM),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What was found. `present` are the programs and files of the table that are there."""

    system: str
    architecture: str
    python: tuple[int, ...]
    root: bool
    os_release: Mapping[str, str]
    present: frozenset[str]
    has_tun: bool

    @property
    def distribution(self) -> str:
        return self.os_release.get("PRETTY_NAME") or self.os_release.get("NAME") or "an unknown distribution"


@dataclass(frozen=True, slots=True)
class Refuse:
    """This machine cannot be made ready, or not by us."""

    problem: str
    hint: str


@dataclass(frozen=True, slots=True)
class Install:
    """Debian packages, each with what it is for."""

    packages: Mapping[str, str]

    @property
    def command(self) -> tuple[str, ...]:
        return ("apt-get", "install", "--yes", "--no-install-recommends", *self.packages)


Action = Refuse | Install


def plan_packages(
    facts: MachineFacts, *, purposes: Iterable[Purpose] = tuple(Purpose), offline: bool = False
) -> list[Action]:
    """In order; nothing to do is an empty list, and after a refusal nothing else is in it."""
    if refusal := _hopeless(facts):
        return [refusal]
    wanted = set(purposes)
    missing = [
        need for need in needs(facts.architecture) if need.purpose in wanted and need.program not in facts.present
    ]
    actions: list[Action] = []
    if missing:
        install = Install({need.package: need.why for need in missing})
        if offline:
            return [Refuse(_lacks(missing), f"--offline fetches nothing; install: {' '.join(install.packages)}")]
        if not is_debian(facts.os_release) or "apt-get" not in facts.present:
            return [Refuse(f"{_lacks(missing)} ({facts.distribution})", _elsewhere(missing))]
        actions.append(install)
    if Purpose.RUN in wanted and not facts.has_tun:
        hint = "load it: modprobe tun. In a container: give it /dev/net/tun and CAP_NET_ADMIN"
        return [Refuse("there is no /dev/net/tun, through which a virtual machine has its network", hint)]
    return actions


def _hopeless(facts: MachineFacts) -> Refuse | None:
    if facts.system != "Linux":
        return Refuse(f"vm0 runs virtual machines on Linux, this is {facts.system}", "use a Linux machine, or --server")
    if facts.architecture not in QEMU_PACKAGES:
        return Refuse(f"architecture {facts.architecture} is not supported", f"supported: {', '.join(QEMU_PACKAGES)}")
    if facts.python[:2] < OLDEST_PYTHON:
        return Refuse(f"Python {_dotted(facts.python)} is too old", f"vm0 needs {_dotted(OLDEST_PYTHON)} or newer")
    if not facts.root:
        return Refuse(
            "virtual machines need root: network namespaces, taps, firewall rules, and building an image",
            "run it as root (sudo)",
        )
    return None


def is_debian(os_release: Mapping[str, str]) -> bool:
    """Debian, or made from it: its package names are those of the table."""
    names = {os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()}
    return bool(names & DEBIAN_FAMILY)


def parse_os_release(text: str) -> dict[str, str]:
    """As os-release(5) has it: assignments, the value perhaps in quotes. A line that is none says nothing."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or not name.isidentifier():
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = ESCAPED.sub(r"\1", value[1:-1])
        found[name] = value
    return found


def _lacks(missing: list[Need]) -> str:
    return f"this machine lacks {', '.join(need.program for need in missing)}"


def _elsewhere(missing: list[Need]) -> str:
    parts = [f"{need.program} (Debian's package {need.package}): {need.why}" for need in missing]
    return "install what has these, with your distribution's package manager:\n  " + "\n  ".join(parts)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
