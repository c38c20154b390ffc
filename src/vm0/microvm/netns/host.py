"""The host's side: taking a pool index, removing what dead owners left, the host's table, one namespace at a time.

Everything here blocks and belongs into a thread (`threads.start`). "The host" is the network namespace of the thread
that starts it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from vm0.microvm.netns import apply, links, names, nft
from vm0.microvm.netns.errors import NamespaceError, hint_for
from vm0.microvm.netns.leases import Lease, LeaseDirectory
from vm0.microvm.netns.namespace import Namespace
from vm0.microvm.netns.plan import NETWORK, Slot, is_usable_resolver, nameserver, parse_slot
from vm0.microvm.netns.policy import TABLE, host_rules, host_rules_removal, obstacles

log = logging.getLogger("vm0.microvm.netns")

AUTOMATIC = "auto"
# systemd-resolved puts its loopback address into the first and the real ones into the second
RESOLVER_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
NFPROTO_INET = 1  # include/uapi/linux/netfilter.h
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Host(Protocol):
    """What the pool needs done, each call in a thread of its own."""

    def open(self) -> int: ...

    def create(self, number: int) -> Namespace: ...

    def remove(self, number: int) -> None: ...

    def close(self) -> None: ...


class LinuxHost:
    """The real one. `create` leaves its thread in the new namespace."""

    def __init__(self, run_dir: Path, netns_dir: Path, resolver: str | None) -> None:
        self._leases = LeaseDirectory(run_dir / "netns")
        self._mounted = run_dir / "netns" / "mounted"  # exists while the mount is a pool's, not iproute2's
        self._directory = netns_dir
        self._wanted_resolver = resolver
        self._resolver: str | None = None
        self._lease: Lease | None = None

    def open(self) -> int:
        """Take an index, remove the orphans of this and every other free index, install the host's table.

        Sets the host's net.ipv4.ip_forward, and leaves it set: others may rely on it by then. Raises NamespaceError;
        then nothing is held or installed.
        """
        self._resolver = _resolver(self._wanted_resolver)
        with _translated("preparing the host"), self._leases.locked():
            lease = self._leases.take()
            try:
                if names.prepare(self._directory):
                    self._mounted.touch()
                _refuse_overlap()
                self._remove_orphans(self._leases.held() - {lease.pool})
                _install_rules(self._resolver)
                _warn_of_obstacles()
            except BaseException:
                with contextlib.suppress(NamespaceError):  # fails for the same reason, which is already on its way
                    self._give_back(lease)
                raise
            self._lease = lease
        return lease.pool

    def create(self, number: int) -> Namespace:
        slot = Slot(self._pool(), number)
        with _translated("the host's table"):
            if not _table_is_there():  # somebody flushed the ruleset
                log.warning("the host's nft table %s was gone", TABLE, extra={"action": "netns_table_restored"})
                _install_rules(self._resolver)
        apply.create(slot, self._resolver, self._directory)
        return Namespace(slot, self._directory / slot.name)

    def remove(self, number: int) -> None:
        apply.remove(Slot(self._pool(), number), self._directory)

    def close(self) -> None:
        """Give the index back; the last one out removes the host's table and the directory's mount. Idempotent."""
        lease, self._lease = self._lease, None
        if lease is not None:
            with _translated("giving the pool back"), self._leases.locked():
                self._give_back(lease)

    def _pool(self) -> int:
        if self._lease is None:
            raise NamespaceError("the network pool is not open")
        return self._lease.pool

    def _give_back(self, lease: Lease) -> None:
        self._leases.release(lease)
        if self._leases.held():
            return
        if self._mounted.exists():
            names.withdraw(self._directory)
            self._mounted.unlink()
        nft.load(host_rules_removal())

    def _remove_orphans(self, in_use: set[int]) -> None:
        with contextlib.closing(IPRoute()) as route:
            present = {*os.listdir(self._directory), *links.link_names(route)}
        slots = {slot for slot in map(parse_slot, present) if slot is not None and slot.pool not in in_use}
        for slot in sorted(slots):
            log.warning("removing %s of a dead owner", slot.name, extra={"action": "netns_orphan_removed"})
            apply.remove(slot, self._directory)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except (OSError, NetlinkError) as exc:
        raise NamespaceError(f"{doing}: {exc}", hint=hint_for(exc)) from exc


def _resolver(wanted: str | None) -> str | None:
    if wanted is None:
        return None
    if wanted != AUTOMATIC:
        if not is_usable_resolver(wanted):
            raise NamespaceError(f"{wanted!r} is no resolver for VMs", hint="give an IPv4 address that is not loopback")
        return wanted
    for path in RESOLVER_FILES:
        with contextlib.suppress(OSError):
            if found := nameserver(path.read_text(errors="replace")):
                return found
    log.warning("this host has no resolver that VMs could use: no DNS", extra={"action": "netns_no_resolver"})
    return None


def _refuse_overlap() -> None:
    """An address of the host's own in our network would be cut off by our routes, and mistaken for a VM's."""
    with contextlib.closing(IPRoute()) as route:
        for address, link in links.addresses(route):
            if ipaddress.IPv4Address(address) in ipaddress.IPv4Network(NETWORK) and parse_slot(link) is None:
                raise NamespaceError(
                    f"{link} has {address}, but VMs' links use {NETWORK}", hint="renumber that link of this host"
                )


def _table_is_there() -> bool:
    with contextlib.closing(NFTables(nfgen_family=NFPROTO_INET)) as tables:
        return any(table.get_attr("NFTA_TABLE_NAME") == TABLE for table in tables.get_tables())


def _install_rules(resolver: str | None) -> None:
    """Rules first: a host that forwards before it filters has a gap."""
    nft.load(host_rules(resolver))
    if IP_FORWARD.read_text().strip() != "1":
        IP_FORWARD.write_text("1")


def _warn_of_obstacles() -> None:
    for chain in obstacles(nft.chains()):
        log.warning(
            "chain %s drops by policy what it does not know: VMs' traffic too, unless it accepts links vm0-ve-*",
            chain,
            extra={"action": "netns_obstacle"},
        )
