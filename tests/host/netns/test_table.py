"""The host's table, which all pools of a host share."""

from __future__ import annotations

import asyncio
import logging
import pathlib

import pytest

from tests.host.netns.machine import PrivateHost, ruleset, run
from vm0.microvm import threads
from vm0.microvm.netns import nft
from vm0.microvm.netns.policy import host_rules, host_rules_removal

pytestmark = pytest.mark.host


def has_table() -> bool:
    return "table inet vm0" in ruleset()


async def test_the_table_stays_until_the_last_one_leaves(host: PrivateHost) -> None:
    first, second = host.pool(), host.pool()
    async with first:
        async with second:
            assert (first.index, second.index) == (0, 1)
        assert has_table()
    assert not has_table()


async def test_runners_that_come_and_go_at_once_agree_about_the_table(host: PrivateHost) -> None:
    """Whoever is there has it; when nobody is, it is gone."""

    async def runner(rounds: int) -> None:
        for _ in range(rounds):
            async with host.pool():
                assert has_table()

    await asyncio.gather(*(runner(8) for _ in range(4)))
    assert not has_table()
    for _ in range(5):
        leaving, staying = await host.pool().__aenter__(), host.pool()
        await asyncio.gather(leaving.__aexit__(), staying.__aenter__())
        assert has_table()
        both = await host.pool().__aenter__()
        await asyncio.gather(staying.__aexit__(), both.__aexit__())
        assert not has_table()


def test_the_hosts_rules_can_be_loaded_again_and_again(host: PrivateHost) -> None:
    nft.load(host_rules("192.0.2.1"))
    once = ruleset()
    nft.load(host_rules("192.0.2.1"))
    assert ruleset() == once
    nft.load(host_rules("192.0.2.2"))
    assert "elements = { 192.0.2.1, 192.0.2.2 }" in ruleset(), "of another runner, which is still there"
    for _ in range(2):
        nft.load(host_rules_removal())
        assert ruleset() == ""


async def test_a_flushed_ruleset_is_restored_by_the_next_creation(
    host: PrivateHost, caplog: pytest.LogCaptureFixture
) -> None:
    async with host.pool() as pool:
        complete = ruleset()
        run("nft", "flush", "ruleset")
        await pool.acquire()
        assert ruleset() == complete
        assert "nft table vm0 was gone" in caplog.text


async def test_chains_of_others_that_would_drop_vms_are_named(
    host: PrivateHost, caplog: pytest.LogCaptureFixture
) -> None:
    base = "{ type filter hook forward priority 0; policy drop; }"
    run("nft", f"add table ip filter; add chain ip filter FORWARD {base}")
    with caplog.at_level(logging.WARNING):
        async with host.pool():
            pass
    assert "chain ip filter FORWARD drops by policy" in caplog.text


async def test_the_host_forwards(host: PrivateHost) -> None:
    def forwards() -> str:
        return threads.start(pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text, "read").result().strip()

    async with host.pool():
        assert forwards() == "1"
    assert forwards() == "1"
