"""Namespaces come and go and leave nothing behind: by the book, by failure at any step, by kill -9, by the dozen."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.host.netns.guest import Guest
from tests.host.netns.machine import INTERNET, PrivateHost, add_link, inventory, netlink, run
from vm0.microvm.netns import NamespaceError, NamespacePool, apply
from vm0.microvm.netns.names import NETNS_DIR
from vm0.microvm.netns.plan import Slot, creation_plan

pytestmark = pytest.mark.host

STEPS = [step.name for step in creation_plan(Slot(0, 0), None)]
READY_BUDGET_S = 0.005  # measured: some 5 µs; the rest is for a busy machine

OWNER = """
import asyncio, pathlib, sys
from vm0.microvm.netns import NamespacePool

async def main(run_dir, netns_dir, count):
    pool = NamespacePool(pathlib.Path(run_dir), netns_dir=pathlib.Path(netns_dir), spare=1, resolver=None)
    async with pool:
        namespaces = await asyncio.gather(*(pool.acquire() for _ in range(int(count))))
        print(*(namespace.name for namespace in namespaces), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main(*sys.argv[1:]))
"""


class Owner:
    """Another process with a pool; ends in order when its input does."""

    def __init__(self, host: PrivateHost, count: int) -> None:
        command = [sys.executable, "-c", OWNER, str(host.run_dir), str(host.netns_dir), str(count)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def names(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def finish(self) -> int:
        self.process.communicate()
        return self.process.returncode


@pytest.fixture
def owners() -> Iterator[list[Owner]]:
    started: list[Owner] = []
    yield started
    for owner in started:
        owner.kill()


def pools_in(names: list[str]) -> set[str]:
    return {name.removeprefix("vm0-ns-").partition("-")[0] for name in names}


async def test_a_pool_leaves_the_host_as_it_was(host: PrivateHost) -> None:
    before = inventory(host)
    async with host.pool(spare=2, resolver=INTERNET) as pool:
        kept, released = await pool.acquire(), await pool.acquire()
        with Guest(kept) as guest:
            guest.send(b"?", INTERNET, 9)
            await pool.release(released)
            assert kept.netns_path.exists()
            assert not released.netns_path.exists()
        during = inventory(host)
        assert all(during[kind] != before[kind] for kind in ("namespaces", "leases", "mounts", "links", "rules"))
    assert inventory(host) == before


async def test_forty_at_once(host: PrivateHost, record_property) -> None:
    before = inventory(host)
    async with host.pool() as pool:
        began = time.perf_counter()
        namespaces = await asyncio.gather(*(pool.acquire() for _ in range(40)))
        record_property("creation_s_each", (time.perf_counter() - began) / 40)
        assert len({namespace.source_address for namespace in namespaces}) == 40
        assert len(inventory(host)["mounts"]) == 1 + 40
        for namespace in namespaces:
            os.close(namespace.open_tap(0))
        began = time.perf_counter()
        await asyncio.gather(*(pool.release(namespace) for namespace in namespaces))
        record_property("removal_s_each", (time.perf_counter() - began) / 40)
        assert inventory(host)["links"] == before["links"]
    assert inventory(host) == before


async def test_acquiring_a_ready_one_takes_no_time(host: PrivateHost, record_property) -> None:
    async with host.pool(spare=20) as pool:
        while pool.ready < 20:
            await asyncio.sleep(0.001)
        times = []
        for _ in range(20):
            began = time.perf_counter()
            await pool.acquire()
            times.append(time.perf_counter() - began)
    record_property("acquire_ready_s", statistics.median(times))
    assert statistics.median(times) < READY_BUDGET_S


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", STEPS)
async def test_a_failed_step_is_named_and_leaves_nothing(
    host: PrivateHost, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    perform = apply._perform

    def failing(step, site, undo, sockets) -> None:
        if step.name != name or moment == "after":
            perform(step, site, undo, sockets)
        if step.name == name:
            raise OSError(28, "No space left on device")

    async with host.pool() as pool:
        before = inventory(host)
        with monkeypatch.context() as patched:
            patched.setattr(apply, "_perform", failing)
            with pytest.raises(NamespaceError, match=f"vm0-ns-00-00: step '{name}': .*No space") as caught:
                await pool.acquire()
        assert "max_net_namespaces" in caught.value.hint
        assert inventory(host) == before
        await pool.acquire()  # the pool is none the worse for it


async def test_a_failure_within_the_first_step_leaves_no_file(
    host: PrivateHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(flags: int) -> None:
        raise OSError(1, "Operation not permitted")

    async with host.pool() as pool:
        before = inventory(host)
        monkeypatch.setattr("vm0.microvm.netns.names.unshare", refuse)
        with pytest.raises(NamespaceError, match="step 'namespace'") as caught:
            await pool.acquire()
        assert "root" in caught.value.hint
        assert inventory(host) == before


async def test_a_name_that_somebody_else_took_is_left_alone(host: PrivateHost) -> None:
    async with host.pool() as pool:
        foreign = host.netns_dir / "vm0-ns-00-00"
        foreign.touch()
        with pytest.raises(NamespaceError, match=r"step 'namespace'.*exists"):
            await pool.acquire()
        assert foreign.exists()
        assert (await pool.acquire()).name == "vm0-ns-00-01"
        foreign.unlink()


async def test_a_start_that_fails_leaves_nothing(host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inventory(host)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "/nonexistent")
        patched.setattr("vm0.microvm.netns.nft.FALLBACK", "/nonexistent/nft")
        with pytest.raises(NamespaceError, match="nft is not installed") as caught:
            await host.pool().__aenter__()
    assert "nftables" in caught.value.hint
    assert inventory(host) == before


async def test_an_address_of_the_hosts_own_in_our_network_is_refused(host: PrivateHost) -> None:
    netlink(lambda: add_link("lan0", "10.200.77.1"))
    before = inventory(host)
    with pytest.raises(NamespaceError, match=r"lan0 has 10\.200\.77\.1, but VMs' links use 10\.200\.0\.0/16"):
        await host.pool().__aenter__()
    assert inventory(host) == before


async def test_two_processes_have_a_pool_each(host: PrivateHost, owners: list[Owner]) -> None:
    before = inventory(host)
    owners += [Owner(host, 10), Owner(host, 10)]
    names = [owner.names() for owner in owners]
    assert [len(set(mine)) for mine in names] == [10, 10]
    assert {*pools_in(names[0]), *pools_in(names[1])} == {"00", "01"}
    assert [owner.finish() for owner in owners] == [0, 0]
    assert inventory(host) == before


async def test_what_killed_owners_left_is_removed_at_the_next_start(
    host: PrivateHost, owners: list[Owner], caplog: pytest.LogCaptureFixture
) -> None:
    """Of the index that is taken, and of every other one that nobody holds; but nothing of the living."""
    before = inventory(host)
    owners += [Owner(host, 3)]
    first = owners[0].names()
    owners += [Owner(host, 3)]
    second = owners[1].names()
    owners += [Owner(host, 3)]
    living = owners[2].names()
    assert [pools_in(names) for names in (first, second, living)] == [{"00"}, {"01"}, {"02"}]
    for owner in owners[:2]:
        owner.kill()
    assert set(first + second + living) <= set(inventory(host)["namespaces"])
    async with host.pool() as pool:
        assert pool.index == 0
        found = inventory(host)
        assert pools_in(found["namespaces"]) == {"02"}
        assert set(living) <= set(found["namespaces"])
        assert {
            link for link in found["links"] if link.startswith("vm0-ve-0") and not link.startswith("vm0-ve-02")
        } == set()
        assert found["leases"] == ["netns/mounted", "netns/pool-00.lock", "netns/pool-02.lock"]
        assert "removing vm0-ns-00-00 of a dead owner" in caplog.text
        await pool.acquire()
    assert owners[2].finish() == 0
    assert inventory(host) == before


async def test_half_of_an_orphan_is_enough_to_find_it(host: PrivateHost) -> None:
    before = inventory(host)
    async with host.pool():
        pass  # makes the directory
    (host.netns_dir / "vm0-ns-00-05").touch()  # a name whose mount is gone, as after a reboot
    netlink(lambda: add_link("vm0-ve-3f-ff", "10.200.255.253"))
    (host.netns_dir / "somebody-elses").touch()
    async with host.pool():
        assert inventory(host)["namespaces"] == ["somebody-elses"]
        assert "vm0-ve-3f-ff" not in inventory(host)["links"]
    (host.netns_dir / "somebody-elses").unlink()
    assert inventory(host) == before


async def test_a_process_still_inside_is_cut_off(host: PrivateHost) -> None:
    async with host.pool() as pool:
        namespace = await pool.acquire()
        with Guest(namespace):  # holds the tap open beyond the release
            await pool.release(namespace)
            assert namespace.host_link not in inventory(host)["links"]
            with pytest.raises(NamespaceError, match="No such file"):
                namespace.open_tap(0)


async def test_with_its_defaults_ip_netns_shows_it(leak_check: None) -> None:
    """On this very host, beside whatever else runs there: names of our own index only."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    async with NamespacePool(spare=0) as pool:
        namespace = await pool.acquire()
        assert namespace.netns_path == NETNS_DIR / namespace.name
        listed = run("ip", "netns", "list")
        assert namespace.name in listed.split()
        os.close(namespace.open_tap(0))
        await pool.release(namespace)
        listed = run("ip", "netns", "list")
        assert namespace.name not in listed.split()
