"""Which packets of a VM may go where: the nft rule sets of a namespace and of the host, as data for `nft -j`.

Both tables are called `inet vm0`. The namespace's holds what concerns one VM (its address, the way to bridge and
resolver); the host's is one for all VMs of all runners, static, and matches links by wildcard. Each refuses on its own
that a VM reaches another VM's link, so losing the host's table (`nft flush ruleset`) does not open that door.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vm0.microvm.guest import BRIDGE_PORT, GATEWAY, GUEST_ADDRESS, TAP_NAME

Rules = tuple[Mapping[str, Any], ...]  # commands of one nft transaction, JSON edge
Expression = dict[str, Any]

FAMILY, TABLE = "inet", "vm0"
VM_LINKS = "vm0-ve-*"
VM_NETWORK = {"prefix": {"addr": "10.200.0.0", "len": 16}}
LINK_LOCAL = {"prefix": {"addr": "169.254.0.0", "len": 16}}
HTTP_PORT, DNS_PORT = 80, 53
RESOLVERS = "resolvers"  # set of the addresses that runners send DNS to, for hosts that run their resolver themselves
EGRESS = "egress"
# priorities of netfilter hooks, include/uapi/linux/netfilter_ipv4.h
RAW, DSTNAT, FILTER, SRCNAT = -300, -100, 0, 100

ACCEPT: Expression = {"accept": None}
DROP: Expression = {"drop": None}
MASQUERADE: Expression = {"masquerade": None}

# What a VM may reach beyond this host. Here: everything. An egress policy puts its own rules in the chain's place.
OPEN_EGRESS: tuple[tuple[Expression, ...], ...] = ((ACCEPT,),)


def namespace_rules(host_address: str, resolver: str | None) -> Rules:
    """The namespace's whole table. Without a resolver DNS is dropped, like all else that is sent to the gateway."""
    from_tap = _is("iifname", TAP_NAME)
    to_gateway = (from_tap, _field("ip", "daddr", GATEWAY))
    out = (from_tap, _is("oifname", "veth0"))
    prerouting_nat = [(*to_gateway, _field("tcp", "dport", HTTP_PORT), _dnat(host_address, BRIDGE_PORT))]
    if resolver is not None:
        prerouting_nat += [
            (*to_gateway, _field(protocol, "dport", DNS_PORT), _dnat(resolver)) for protocol in ("udp", "tcp")
        ]
    return (
        _table("add"),
        *_chain("forged", "filter", "prerouting", RAW),
        _rule("forged", from_tap, _is("nfproto", "ipv6"), DROP),
        _rule("forged", from_tap, _field("ip", "saddr", GUEST_ADDRESS, op="!="), DROP),
        *_chain("redirect", "nat", "prerouting", DSTNAT),
        *(_rule("redirect", *expressions) for expressions in prerouting_nat),
        *_chain("input", "filter", "input", FILTER, policy="drop"),
        *_chain("forward", "filter", "forward", FILTER, policy="drop"),
        # what conntrack cannot place is not translated either, and would leave with the guest's own address
        _rule("forward", _state("invalid"), DROP),
        _rule("forward", _state("established", "related"), ACCEPT),
        _rule("forward", *out, _field("ip", "daddr", host_address), _field("tcp", "dport", BRIDGE_PORT), ACCEPT),
        _rule("forward", *out, _field("ip", "daddr", VM_NETWORK), DROP),
        _rule("forward", *out, ACCEPT),
        *_chain("translate", "nat", "postrouting", SRCNAT),
        _rule("translate", _is("oifname", "veth0"), MASQUERADE),
    )


def host_rules(resolver: str | None, egress: Iterable[tuple[Expression, ...]] = OPEN_EGRESS) -> Rules:
    """The host's table, complete, whatever was there before: atomic, idempotent, and keeping elements of the set.

    `egress` is the content of the chain that decides what VMs may reach beyond this host.
    """
    from_vm, to_vm = _is("iifname", VM_LINKS), _is("oifname", VM_LINKS)
    # the address must be one of the very link that the packet came by, else a VM could reach the bridge as another one
    own_link = _fib("type", ("daddr", "iif"), "local")
    return (
        _table("add"),
        {"add": {"set": {"family": FAMILY, "table": TABLE, "name": RESOLVERS, "type": "ipv4_addr"}}},
        *_chain("forged", "filter", "prerouting", RAW),
        *_chain("input", "filter", "input", FILTER),
        *_chain("forward", "filter", "forward", FILTER),
        *_chain("translate", "nat", "postrouting", SRCNAT),
        {"add": {"chain": {"family": FAMILY, "table": TABLE, "name": EGRESS}}},
        {"flush": {"table": {"family": FAMILY, "name": TABLE}}},  # rules, not chains or sets
        _rule("forged", from_vm, _is("nfproto", "ipv6"), DROP),
        _rule("forged", from_vm, _fib("oif", ("saddr", "iif"), False), DROP),  # no route back by this link
        _rule("input", from_vm, own_link, _field("tcp", "dport", BRIDGE_PORT), ACCEPT),
        *(
            _rule("input", from_vm, _field("ip", "daddr", f"@{RESOLVERS}"), _field(protocol, "dport", DNS_PORT), ACCEPT)
            for protocol in ("udp", "tcp")
        ),
        _rule("input", from_vm, DROP),
        # our ends of the links are for VMs and for this host, not for its neighbours
        _rule("input", _is("iifname", "lo", op="!="), _field("ip", "daddr", VM_NETWORK), DROP),
        _rule("forward", from_vm, to_vm, DROP),
        _rule("forward", from_vm, _field("ip", "daddr", VM_NETWORK), DROP),  # a VM that does not exist (any more)
        _rule("forward", from_vm, _field("ip", "daddr", LINK_LOCAL), DROP),  # RFC 3927 2.7; clouds keep secrets there
        _rule("forward", from_vm, {"jump": {"target": EGRESS}}),
        _rule("forward", to_vm, _state("established", "related"), ACCEPT),
        _rule("forward", to_vm, DROP),
        *(_rule(EGRESS, *expressions) for expressions in egress),
        _rule("translate", _field("ip", "saddr", VM_NETWORK), _is("oifname", VM_LINKS, op="!="), MASQUERADE),
        *_resolver_element(resolver),
    )


def host_rules_removal() -> Rules:
    """Idempotent: the table is added first, so that deleting it cannot fail."""
    return (_table("add"), _table("delete"))


def obstacles(listing: Mapping[str, Any]) -> list[str]:
    """Chains of other software that drop by policy what VMs send (from `nft -j list chains`).

    A packet must be accepted by every chain on its way: our table cannot overrule Docker's or ufw's. Rules that drop
    at the end of a chain, and tables of the legacy iptables, are not seen here.
    """
    found = []
    for entry in listing.get("nftables", ()):
        chain = entry.get("chain", {})
        ours = (chain.get("family"), chain.get("table")) == (FAMILY, TABLE)
        concerns = chain.get("hook") in ("input", "forward") and chain.get("family") in ("ip", "inet")
        if concerns and not ours and chain.get("policy") == "drop":
            found.append(f"{chain['family']} {chain['table']} {chain['name']}")
    return found


def _table(verb: str) -> Mapping[str, Any]:
    return {verb: {"table": {"family": FAMILY, "name": TABLE}}}


def _chain(name: str, kind: str, hook: str, priority: int, policy: str = "accept") -> Rules:
    base = {"type": kind, "hook": hook, "prio": priority, "policy": policy}
    return ({"add": {"chain": {"family": FAMILY, "table": TABLE, "name": name, **base}}},)


def _rule(chain: str, *expressions: Expression) -> Mapping[str, Any]:
    return {"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": chain, "expr": list(expressions)}}}


def _resolver_element(resolver: str | None) -> Rules:
    if resolver is None:
        return ()
    return ({"add": {"element": {"family": FAMILY, "table": TABLE, "name": RESOLVERS, "elem": [resolver]}}},)


def _match(left: Expression, right: object, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": left, "right": right}}


def _is(key: str, value: str, op: str = "==") -> Expression:
    return _match({"meta": {"key": key}}, value, op)


def _field(protocol: str, field: str, value: object, op: str = "==") -> Expression:
    return _match({"payload": {"protocol": protocol, "field": field}}, value, op)


def _state(*states: str) -> Expression:
    return _match({"ct": {"key": "state"}}, list(states), op="in")


def _fib(result: str, flags: tuple[str, ...], value: object) -> Expression:
    return _match({"fib": {"result": result, "flags": list(flags)}}, value)


def _dnat(address: str, port: int | None = None) -> Expression:
    target: Expression = {"family": "ip", "addr": address}
    return {"dnat": target if port is None else {**target, "port": port}}
