"""Factories on a private host, whose VMMs are the fake one: everything else is real."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import shutil
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.host.netns.machine import PrivateHost, private_host
from tests.host.sandbox_qemu.leftovers import Leftovers
from tests.support.capabilities import require
from tests.support.fake_qemu.installation import FakeQemu, installed
from vm0.sandbox import SandboxConfig
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory

SIZE_MIB = 16  # of memory and disk: nothing is in them
BOOTED_MIB = SIZE_MIB + 1

NewFactory = Callable[..., QemuSandboxFactory]


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Iterator[PrivateHost]:
    """Network namespace and leases of the test's own."""
    require(os.geteuid() == 0, "network namespaces need root")
    missing = [name for name in ("nft", "mkfs.ext4", "setpriv") if shutil.which(name) is None]
    require(not missing, f"not installed: {', '.join(missing)}")
    require(pathlib.Path("/dev/net/tun").exists(), "no /dev/net/tun")
    with private_host(tmp_path / "host") as made:
        yield made


@pytest.fixture(scope="session")
def installed_fake() -> Iterator[FakeQemu]:
    require(platform.machine() == "x86_64", "the fake QEMU plays an x86_64 machine")
    with installed() as fake:
        yield fake


@pytest.fixture
def fake(installed_fake: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    """What is started instead of QEMU; it behaves."""
    installed_fake.misbehave()
    installed_fake.put_in_place(monkeypatch)
    return installed_fake


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One store for all tests that do not damage what is in it."""
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture
def options(fake: FakeQemu, snapshots: pathlib.Path) -> QemuOptions:
    """Of a factory whose sandboxes are restored."""
    return QemuOptions(image=fake.image, memory_mib=SIZE_MIB, disk_mib=SIZE_MIB, snapshots=snapshots, accelerator="tcg")


@pytest.fixture
def new_factory(host: PrivateHost, options: QemuOptions, tmp_path: pathlib.Path) -> NewFactory:
    """Makes a factory, to be entered. By default with one root for all that a test makes."""

    def make(name: str = "qemu", *, spare: int = 0, **changes: object) -> QemuSandboxFactory:
        changed = dataclasses.replace(options, **changes)  # type: ignore[arg-type]  # the test's keywords
        return QemuSandboxFactory(tmp_path / "roots" / name, changed, namespaces=host.pool(spare=spare))

    (tmp_path / "roots").mkdir()
    return make


@pytest.fixture
async def factory(new_factory: NewFactory) -> AsyncIterator[QemuSandboxFactory]:
    async with new_factory() as factory:
        yield factory


@pytest.fixture
def leftovers(factory: QemuSandboxFactory, host: PrivateHost, fake: FakeQemu, tmp_path: pathlib.Path) -> Leftovers:
    """What there is more than in a factory without sandboxes."""
    return Leftovers(host, fake, tmp_path / "roots")


def config(name: str = "sandbox", **changes: object) -> SandboxConfig:
    """Of the factories' shape, so that it is restored; `memory_mib=BOOTED_MIB` makes one that boots."""
    sizes = {"memory_mib": SIZE_MIB, "disk_mib": SIZE_MIB}
    return SandboxConfig(sandbox_id=name, **(sizes | changes))  # type: ignore[arg-type]  # the test's keywords
