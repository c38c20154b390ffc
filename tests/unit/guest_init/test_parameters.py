"""The kernel's command line: what it says, what it leaves out, and what makes no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.guest_init.parameters import ParameterError, parse

FULL = (
    "console=ttyS0 quiet panic=-1 root=/dev/vda ro init=/usr/lib/vm0/init vm0.link=vsock:2:1000 vm0.token=00ff10 "
    "vm0.ip=192.168.241.2/29 vm0.gw=192.168.241.1 vm0.dns=192.168.241.3 vm0.hostname=a-1.b vm0.overlay=/dev/vdb\n"
)


def test_all_of_them() -> None:
    found = parse(FULL)
    assert (found.link, found.token, found.hostname) == ("vsock:2:1000", b"\x00\xff\x10", "a-1.b")
    assert (found.address, found.prefix, found.gateway) == ("192.168.241.2", 29, "192.168.241.1")
    assert (found.nameserver, found.overlay) == ("192.168.241.3", "/dev/vdb")
    assert (found.resets, found.unknown) == (False, ())


@pytest.mark.parametrize(
    "line", ["", "quiet", "vm0.link= vm0.token= vm0.ip= vm0.gw= vm0.dns= vm0.hostname= vm0.overlay="]
)
def test_nothing_said(line: str) -> None:
    found = parse(line)
    assert (found.link, found.token, found.hostname, found.overlay) == ("serial:vm0", b"", "vm0", "")
    assert (found.address, found.gateway, found.nameserver) == ("", "", "")


def test_the_last_of_two_counts() -> None:
    assert parse("vm0.hostname=a vm0.hostname=b").hostname == "b"


def test_a_machine_that_cannot_be_switched_off_is_reset() -> None:
    assert parse("reboot=k panic=1").resets
    assert not parse("reboot=t").resets


def test_unknown_names_are_told() -> None:
    assert parse("vm0.new=1 vm0.also vm0.probe=1 other.x=2").unknown == ("also", "new")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("vm0.token=xyz", "vm0.token: not hexadecimal"),
        ("vm0.token=" + "00" * 65, "vm0.token: 65 bytes, at most 64"),
        ("vm0.ip=10.0.0.1", "vm0.ip=10.0.0.1: not ADDRESS/PREFIX"),
        ("vm0.ip=10.0.0.1/0", "not ADDRESS/PREFIX"),
        ("vm0.ip=10.0.0.1/33", "not ADDRESS/PREFIX"),
        ("vm0.ip=10.0.0/24", "vm0.ip=10.0.0: not an IPv4 address"),
        ("vm0.ip=::1/64", "not ADDRESS/PREFIX"),
        ("vm0.gw=gateway", "vm0.gw=gateway: not an IPv4 address"),
        ("vm0.gw=10.0.0.1", "vm0.gw without vm0.ip"),
        ("vm0.dns=256.0.0.1", "vm0.dns=256.0.0.1: not an IPv4 address"),
        ("vm0.dns=1.2.3.²", "not an IPv4 address"),
        ("vm0.hostname=a_b", "vm0.hostname=a_b: not a host name"),
        ("vm0.hostname=-a", "not a host name"),
        ("vm0.hostname=" + "a" * 65, "not a host name"),
        ("vm0.overlay=vdb", "vm0.overlay=vdb: not a device below /dev"),
    ],
)
def test_what_makes_no_sense_is_named(word: str, why: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse(f"quiet {word}")
    assert why in str(caught.value)


def test_a_token_is_never_in_an_error() -> None:
    with pytest.raises(ParameterError) as caught:
        parse("vm0.token=secretx")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=200).map(lambda text: f"vm0.ip={text} vm0.token={text} vm0.hostname={text}"))
def test_any_text_is_parsed_or_refused(line: str) -> None:
    try:
        found = parse(line)
    except ParameterError:
        return
    assert len(found.token) <= 64 and 0 < len(found.hostname) <= 64
