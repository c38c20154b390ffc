"""Links, addresses and routes through netlink. An `IPRoute` belongs to the namespace in which its thread made it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

IN6_ADDR_GEN_MODE_NONE = 1  # include/uapi/linux/if_link.h
DUMP_TRIES = 50


def add_link_pair(inside: IPRoute, inner: str, outer: str, host_namespace: int) -> None:
    """A veth pair: `inner` here, `outer` in the namespace of the descriptor, without a moment in the wrong one."""
    inside.link("add", ifname=inner, kind="veth", peer={"ifname": outer, "net_ns_fd": host_namespace})


def index(route: IPRoute, link: str) -> int:
    """Raises NetlinkError (ENODEV). Asks each time: the number belongs to a link, the name to a place."""
    return int(route.link("get", ifname=link)[0]["index"])


def set_up(route: IPRoute, link: str) -> None:
    route.link("set", index=index(route, link), state="up")


def no_link_local(route: IPRoute, link: str) -> None:
    """No IPv6 address when the link comes up. Does nothing on a kernel without IPv6."""
    mode = {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE]]}
    try:
        route.link("set", index=index(route, link), IFLA_AF_SPEC={"attrs": [["AF_INET6", mode]]})
    except NetlinkError as exc:
        if exc.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise


def set_mac(route: IPRoute, link: str, mac: str) -> None:
    route.link("set", index=index(route, link), address=mac)


def add_address(route: IPRoute, link: str, address: str, prefix: int) -> None:
    route.addr("add", index=index(route, link), address=address, prefixlen=prefix)


def add_default_route(route: IPRoute, gateway: str) -> None:
    route.route("add", dst="default", gateway=gateway)


def delete_link(route: IPRoute, link: str) -> None:
    """With its peer. Idempotent."""
    try:
        route.link("del", index=index(route, link))
    except NetlinkError as exc:
        if exc.code not in (errno.ENODEV, errno.ENOENT):
            raise


def link_names(route: IPRoute) -> list[str]:
    """Every link of the namespace."""
    return [str(link.get_attr("IFLA_IFNAME")) for link in _complete(route.get_links)]


def addresses(route: IPRoute) -> list[tuple[str, str]]:
    """Every IPv4 address of the namespace with its label, which is its link's name, or begins with that."""
    found = _complete(lambda: route.get_addr(family=socket.AF_INET))
    return [(str(entry.get_attr("IFA_LOCAL")), str(entry.get_attr("IFA_LABEL"))) for entry in found]


def _complete(dump: Callable[[], Iterable[Any]]) -> list[Any]:
    """A list that nothing changed while the kernel wrote it: such a one may lack what was there all the time."""
    for _ in range(DUMP_TRIES):
        try:
            return list(dump())
        except NetlinkDumpInterrupted:
            continue
    raise OSError(errno.EBUSY, f"the list changed {DUMP_TRIES} times while it was read")
