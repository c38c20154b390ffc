"""What a VM's network namespace is called, which addresses it has, and the steps that make it.

A *slot* is one of 64 × 256 places on a host: pool index (one per process that makes namespaces) and number in the pool.
Names carry both, so whoever finds a namespace or a link knows whose it is, and each slot has a /30 of its own out of
10.200.0.0/16, which the slots fill exactly:

    guest eth0 ── tap vm0-tap ┤ namespace ├ veth0 ──────────── vm0-ve-PP-NN │ host
    192.168.241.2             │           │ source_address      host_address│
                        GATEWAY

Everything here is data: `apply.py` performs the steps, tests read them as text.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from vm0.microvm.guest import GATEWAY, GUEST_PREFIX, TAP_MAC, TAP_NAME
from vm0.microvm.netns.policy import Rules, namespace_rules

POOLS = 64
NAMESPACES = 256  # per pool
NETWORK = "10.200.0.0/16"
LINK_PREFIX = 30  # of each slot's network
INNER_LINK = "veth0"
NAMESPACE_PREFIX = "vm0-ns-"
HOST_LINK_PREFIX = "vm0-ve-"  # with PP-NN 12 characters, of 15 that a link may have

_NAME = re.compile(r"vm0-(?:ns|ve)-([0-9a-f]{2})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """Pool index (0 to 63) and number in it (0 to 255)."""

    pool: int
    number: int

    def __post_init__(self) -> None:
        if not (0 <= self.pool < POOLS and 0 <= self.number < NAMESPACES):
            raise ValueError(f"no slot {self.pool}/{self.number}: {POOLS} pools have {NAMESPACES} namespaces each")

    @property
    def name(self) -> str:
        return f"{NAMESPACE_PREFIX}{self.pool:02x}-{self.number:02x}"

    @property
    def host_link(self) -> str:
        return f"{HOST_LINK_PREFIX}{self.pool:02x}-{self.number:02x}"

    @property
    def host_address(self) -> str:
        return self._address(1)

    @property
    def source_address(self) -> str:
        """The namespace's end of the link: what the host sees as the VM."""
        return self._address(2)

    def _address(self, host: int) -> str:
        return f"10.200.{self.pool * 4 + self.number // 64}.{self.number % 64 * 4 + host}"


def parse_slot(name: str) -> Slot | None:
    """The slot that a namespace or a host link belongs to, None for names that are not ours."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1], 16) >= POOLS:
        return None
    return Slot(int(match[1], 16), int(match[2], 16))


# The operations. `INSIDE` is the new namespace, `HOST` the one that the pool was entered in.
INSIDE, HOST = "inside", "host"


@dataclass(frozen=True, slots=True)
class AddNamespace:
    """Unshare, and give it a name that `ip netns` knows."""

    name: str


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Inside. An optional one is skipped where this kernel lacks it."""

    key: str
    value: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class LoadRules:
    """Inside, as one transaction."""

    rules: Rules


@dataclass(frozen=True, slots=True)
class AddTap:
    """Inside, persistent, so that a VMM may open it by its name."""

    link: str
    mac: str


@dataclass(frozen=True, slots=True)
class AddLinkPair:
    """One end inside, the other on the host."""

    inner: str
    outer: str


@dataclass(frozen=True, slots=True)
class NoLinkLocal:
    """On the host: the link gets no IPv6 address of its own making."""

    link: str


@dataclass(frozen=True, slots=True)
class AddAddress:
    where: str
    link: str
    address: str
    prefix: int


@dataclass(frozen=True, slots=True)
class SetUp:
    where: str
    link: str


@dataclass(frozen=True, slots=True)
class AddDefaultRoute:
    """Inside."""

    gateway: str


Operation = (
    AddNamespace | SetSysctl | LoadRules | AddTap | AddLinkPair | NoLinkLocal | AddAddress | SetUp | AddDefaultRoute
)


@dataclass(frozen=True, slots=True)
class Step:
    """Errors carry the name; the operation says what is done."""

    name: str
    operation: Operation


def creation_plan(slot: Slot, resolver: str | None) -> tuple[Step, ...]:
    """The steps in order. The tap comes up last: by then every rule is in force and nothing can pass it.

    Only the namespace and the link pair need to be undone; all else lives and dies with them.
    """
    return (
        Step("namespace", AddNamespace(slot.name)),
        Step("forwarding", SetSysctl("net/ipv4/ip_forward", "1")),
        # the namespace answers for the addresses of the link that is asked, so the guest cannot find its other ones
        Step("arp", SetSysctl("net/ipv4/conf/all/arp_ignore", "1")),
        Step("ipv6 off", SetSysctl("net/ipv6/conf/all/disable_ipv6", "1", optional=True)),
        Step("ipv6 off for new links", SetSysctl("net/ipv6/conf/default/disable_ipv6", "1", optional=True)),
        Step("rules", LoadRules(namespace_rules(slot.host_address, resolver))),
        Step("link pair", AddLinkPair(INNER_LINK, slot.host_link)),
        Step("host link without ipv6", NoLinkLocal(slot.host_link)),
        Step("host address", AddAddress(HOST, slot.host_link, slot.host_address, LINK_PREFIX)),
        Step("host link up", SetUp(HOST, slot.host_link)),
        Step("loopback up", SetUp(INSIDE, "lo")),
        Step("inner address", AddAddress(INSIDE, INNER_LINK, slot.source_address, LINK_PREFIX)),
        Step("inner link up", SetUp(INSIDE, INNER_LINK)),
        Step("default route", AddDefaultRoute(slot.host_address)),
        Step("tap", AddTap(TAP_NAME, TAP_MAC)),
        Step("tap address", AddAddress(INSIDE, TAP_NAME, GATEWAY, GUEST_PREFIX)),
        Step("tap up", SetUp(INSIDE, TAP_NAME)),
    )


def nameserver(resolv_conf: str) -> str | None:
    """The first nameserver that a VM can be sent to: IPv4 (there is no NAT from IPv4 to IPv6), and not a loopback
    address, which in a namespace is another machine.
    """
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and is_usable_resolver(words[1]):
            return words[1]
    return None


def is_usable_resolver(address: str) -> bool:
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast)
