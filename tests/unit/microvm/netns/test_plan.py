"""Slots, names, addresses and the steps that make a namespace."""

from __future__ import annotations

import ipaddress
import pathlib

import pytest

from vm0.microvm.netns.plan import (
    NAMESPACES,
    NETWORK,
    POOLS,
    Slot,
    creation_plan,
    is_usable_resolver,
    nameserver,
    parse_slot,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"
EVERY_SLOT = [Slot(pool, number) for pool in range(POOLS) for number in range(NAMESPACES)]


@pytest.mark.parametrize(
    ("slot", "name", "link", "host", "source"),
    [
        (Slot(0, 0), "vm0-ns-00-00", "vm0-ve-00-00", "10.200.0.1", "10.200.0.2"),
        (Slot(0, 63), "vm0-ns-00-3f", "vm0-ve-00-3f", "10.200.0.253", "10.200.0.254"),
        (Slot(0, 64), "vm0-ns-00-40", "vm0-ve-00-40", "10.200.1.1", "10.200.1.2"),
        (Slot(10, 255), "vm0-ns-0a-ff", "vm0-ve-0a-ff", "10.200.43.253", "10.200.43.254"),
        (Slot(63, 255), "vm0-ns-3f-ff", "vm0-ve-3f-ff", "10.200.255.253", "10.200.255.254"),
    ],
)
def test_a_slot_gives_names_and_addresses(slot: Slot, name: str, link: str, host: str, source: str) -> None:
    assert (slot.name, slot.host_link, slot.host_address, slot.source_address) == (name, link, host, source)


def test_the_slots_fill_the_network_exactly() -> None:
    networks = {ipaddress.IPv4Network(f"{slot.host_address}/30", strict=False) for slot in EVERY_SLOT}
    assert len(networks) == len(EVERY_SLOT)
    assert list(ipaddress.collapse_addresses(networks)) == [ipaddress.IPv4Network(NETWORK)]
    for slot in EVERY_SLOT:
        hosts = ipaddress.IPv4Network(f"{slot.host_address}/30", strict=False).hosts()
        assert [str(address) for address in hosts] == [slot.host_address, slot.source_address]


def test_names_fit_a_link_and_lead_back_to_their_slot() -> None:
    assert {len(slot.host_link) for slot in EVERY_SLOT} == {12}  # IFNAMSIZ is 16 with the final zero
    assert all(parse_slot(slot.name) == parse_slot(slot.host_link) == slot for slot in EVERY_SLOT)


@pytest.mark.parametrize(
    "name",
    ["", "vm0-ns-40-00", "vm0-ns-00-000", "vm0-ns-0A-00", "vm0-ns-00-00x", "xvm0-ns-00-00", "vm0-tap", "vm0-xx-00-00"],
)
def test_foreign_names_have_no_slot(name: str) -> None:
    assert parse_slot(name) is None


@pytest.mark.parametrize(("pool", "number"), [(-1, 0), (64, 0), (0, -1), (0, 256)])
def test_there_are_no_other_slots(pool: int, number: int) -> None:
    with pytest.raises(ValueError, match="no slot"):
        Slot(pool, number)


def test_the_plan_as_text() -> None:
    steps = creation_plan(Slot(2, 65), "192.0.2.53")
    text = "".join(f"{step.name}: {step.operation}\n" for step in steps if step.name != "rules")
    assert text == (GOLDEN / "creation.txt").read_text()


def test_rules_are_in_force_before_the_tap_exists_and_the_tap_comes_up_last() -> None:
    order = [step.name for step in creation_plan(Slot(0, 0), None)]
    assert len(set(order)) == len(order), "a name tells the step"
    assert order.index("rules") < order.index("link pair") < order.index("tap") < order.index("tap up")
    assert order[-1] == "tap up"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("nameserver 192.0.2.53\n", "192.0.2.53"),
        ("search example.org\nnameserver 127.0.0.53\nnameserver\t198.51.100.7 # second\n", "198.51.100.7"),
        ("nameserver 127.0.0.1\n", None),
        ("nameserver fd00::53\nnameserver 192.0.2.1", "192.0.2.1"),
        ("#nameserver 192.0.2.9\n;nameserver 192.0.2.9\nnameserver\n", None),
        ("nameserver 0.0.0.0\nnameserver 224.0.0.251\nnameserver resolver.example\n", None),
    ],
)
def test_the_nameserver_is_the_first_that_a_vm_can_be_sent_to(text: str, expected: str | None) -> None:
    assert nameserver(text) == expected


def test_a_resolver_is_an_ipv4_address_of_another_machine() -> None:
    assert is_usable_resolver("10.0.0.53")
    assert not any(map(is_usable_resolver, ["", "localhost", "127.0.0.53", "::1", "fd00::1", "1.2.3", "1.2.3.4/24"]))
