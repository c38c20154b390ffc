"""The tap as VMMs get it: a descriptor, or a name that one user may open."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.host.netns.machine import PrivateHost, run
from tests.support.capabilities import require
from vm0.microvm import threads
from vm0.microvm.guest import TAP_MAC, TAP_NAME
from vm0.microvm.netns import Namespace, NamespaceError

pytestmark = pytest.mark.host

OWNER, ANOTHER = 41001, 41002
PYTHON = "/usr/bin/python3"  # one that every user may run
ATTACH = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"vm0-tap", 0x0002 | 0x1000 | 0x4000))
"""


@pytest.fixture
def device(tmp_path: pathlib.Path) -> Iterator[int]:
    """/dev/net/tun for every user, as the jailer makes one in its jail."""
    require(pathlib.Path(PYTHON).exists(), f"no {PYTHON}")
    node = tmp_path / "tun"
    os.mknod(node, stat.S_IFCHR, os.makedev(10, 200))
    node.chmod(0o666)
    fd = os.open(node, os.O_PATH)
    yield fd
    os.close(fd)


def attaches(namespace: Namespace, device: int, uid: int) -> bool:
    """Whether a process of that user, inside the namespace, can open the tap by its name."""

    def attach() -> int:
        command = [PYTHON, "-IS", "-c", ATTACH, f"/proc/self/fd/{device}"]
        return subprocess.run(
            command, user=uid, group=uid, extra_groups=[], pass_fds=[device], stderr=subprocess.DEVNULL
        ).returncode

    return threads.call_inside(namespace.netns_path, attach) == 0


def show_tap(namespace: Namespace) -> str:
    return threads.call_inside(namespace.netns_path, lambda: run("ip", "-d", "link", "show", TAP_NAME))


async def test_one_opener_at_a_time(host: PrivateHost) -> None:
    async with host.pool() as pool:
        namespace = await pool.acquire()
        fd = namespace.open_tap(OWNER)
        assert not os.get_inheritable(fd)
        with pytest.raises(NamespaceError, match="busy") as caught:
            namespace.open_tap(OWNER)
        assert caught.value.hint == "one VMM at a time"
        os.close(fd)
        os.close(namespace.open_tap(OWNER))


async def test_only_its_owner_opens_it_by_name(host: PrivateHost, device: int) -> None:
    async with host.pool() as pool:
        namespace = await pool.acquire()
        assert not attaches(namespace, device, OWNER)
        namespace.set_tap_owner(OWNER)
        assert attaches(namespace, device, OWNER)
        assert not attaches(namespace, device, ANOTHER)


async def test_each_vm_has_a_tap_that_nobody_has_used(host: PrivateHost) -> None:
    async with host.pool() as pool:
        for _ in range(2):
            namespace = await pool.acquire()
            shown = show_tap(namespace)
            assert TAP_MAC in shown
            assert "vnet_hdr on persist on user root " in shown
            os.close(namespace.open_tap(OWNER))
            assert f" user {OWNER} " in show_tap(namespace)
            await pool.release(namespace)
