from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import require
from tests.vsock.endpoints import Endpoint, RawHost, command_group, connected_guest, guest_process
from tests.vsock.places import new_place
from vm0.guest_bundle import GuestBundle, build_bundle
from vm0.sandbox_common import cgroups
from vm0.vsock_host import GuestClient


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> GuestBundle:
    return build_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because socket paths have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vm0-vsock-") as name:
        yield Path(name)


@pytest.fixture(params=["cgroup", "no-cgroup"])
def group(request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """Both ways to hold a command's processes together: a cgroup, or process groups and parent links."""
    if request.param == "no-cgroup":
        yield None
        return
    require(cgroups.writable_parent() is not None, "no writable cgroup v2 hierarchy with cgroup.kill")
    with command_group() as path:
        yield path


@pytest.fixture
async def guest(bundle: GuestBundle, folder: Path) -> AsyncIterator[Endpoint]:
    """A connected guest without a cgroup."""
    async with connected_guest(bundle, folder) as endpoint:
        yield endpoint


@pytest.fixture
async def client(guest: Endpoint) -> GuestClient:
    assert guest.client is not None
    return guest.client


@pytest.fixture
async def contained(bundle: GuestBundle, folder: Path, group: Path | None) -> AsyncIterator[Endpoint]:
    """A connected guest, once with a cgroup and once without."""
    async with connected_guest(bundle, folder, group=group) as endpoint:
        yield endpoint


@pytest.fixture
async def host(folder: Path) -> AsyncIterator[RawHost]:
    """A host that says what the test wants."""
    host = RawHost(new_place(folder))
    yield host
    host.close()


@pytest.fixture
async def served(bundle: GuestBundle, folder: Path, group: Path | None, host: RawHost) -> AsyncIterator[Endpoint]:
    """A guest that dials `host`, once with a cgroup and once without."""
    async with guest_process(bundle, folder, "--connect", host.place.option, group=group) as endpoint:
        yield endpoint


@pytest.fixture
async def lone(bundle: GuestBundle, folder: Path, host: RawHost) -> AsyncIterator[Endpoint]:
    """A guest that dials `host`, without a cgroup."""
    async with guest_process(bundle, folder, "--connect", host.place.option) as endpoint:
        yield endpoint
