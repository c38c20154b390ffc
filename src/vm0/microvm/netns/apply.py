"""Performs the steps that make a namespace, and removes one. Blocking, in threads that end afterwards.

A namespace is never used twice. Recycling would have to bring back to new its conntrack table, neighbour cache, tap
(owner, offloads, header size), counters and whatever a later version adds; the kernel does all that by making another
one, in the background, where its milliseconds cost nobody anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm0.microvm.netns import conntrack, links, names, nft, tap
from vm0.microvm.netns.errors import NamespaceError, hint_for
from vm0.microvm.netns.plan import (
    HOST,
    AddAddress,
    AddDefaultRoute,
    AddLinkPair,
    AddNamespace,
    AddTap,
    LoadRules,
    NoLinkLocal,
    Operation,
    SetSysctl,
    SetUp,
    Slot,
    Step,
    creation_plan,
)

log = logging.getLogger("vm0.microvm.netns")

SYSCTLS = Path("/proc/sys")  # below net it shows the reading thread's namespace
FAILURES = (OSError, NetlinkError, NamespaceError)


@dataclass(slots=True, kw_only=True)
class _Site:
    """Where a plan is performed: descriptors and sockets of both sides. `inside` exists from the first step on."""

    directory: Path
    host_namespace: int
    host: IPRoute
    inside: IPRoute | None = None

    def route(self, where: str = "") -> IPRoute:
        if where == HOST:
            return self.host
        assert self.inside is not None, "the first step makes the namespace"
        return self.inside


def create(slot: Slot, resolver: str | None, directory: Path) -> None:
    """Make the namespace of the slot, in the thread that calls: that is in the new namespace afterwards and must end.

    Raises NamespaceError naming the step; then nothing of it is left.
    """
    with contextlib.ExitStack() as sockets, contextlib.ExitStack() as undo:
        host_namespace = os.open(names.OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        sockets.callback(os.close, host_namespace)
        site = _Site(
            directory=directory,
            host_namespace=host_namespace,
            host=sockets.enter_context(contextlib.closing(IPRoute())),
        )
        for step in creation_plan(slot, resolver):
            try:
                _perform(step, site, undo, sockets)
            except FAILURES as exc:
                _undo(slot, undo)
                hint = exc.hint if isinstance(exc, NamespaceError) else hint_for(exc)
                raise NamespaceError(f"network namespace {slot.name}: step {step.name!r}: {exc}", hint=hint) from exc
        undo.pop_all()


def remove(slot: Slot, directory: Path) -> None:
    """Remove whatever carries the slot's name, and what the host remembers of its address. Idempotent.

    The link goes first: from then on nothing passes, and no new entry can follow the forgotten ones. All is tried
    before the first error is raised as NamespaceError. A process still inside keeps its namespace, cut off and
    nameless.
    """
    with contextlib.closing(IPRoute()) as route:
        actions: tuple[tuple[str, Callable[[], None]], ...] = (
            ("link", lambda: links.delete_link(route, slot.host_link)),
            ("connections", lambda: conntrack.forget(slot.source_address)),
            ("name", lambda: names.remove(directory / slot.name)),
        )
        failed: NamespaceError | None = None
        for what, action in actions:
            try:
                action()
            except FAILURES as exc:
                problem = NamespaceError(
                    f"network namespace {slot.name}: removing the {what}: {exc}", hint=hint_for(exc)
                )
                problem.__cause__ = exc
                failed = failed or problem
    if failed is not None:
        raise failed


def _undo(slot: Slot, undo: contextlib.ExitStack) -> None:
    """A failure to undo is logged: the error of the step is the one to know. The next start cleans up after it."""
    try:
        undo.close()
    except FAILURES as exc:
        log.error("leftovers of %s: %s", slot.name, exc, extra={"action": "netns_undo_failed"})


def _perform(step: Step, site: _Site, undo: contextlib.ExitStack, sockets: contextlib.ExitStack) -> None:
    operation: Operation = step.operation
    match operation:
        case AddNamespace(name):
            path = site.directory / name
            names.reserve(path)
            undo.callback(names.remove, path)
            names.enter_new(path)
            site.inside = sockets.enter_context(contextlib.closing(IPRoute()))
        case SetSysctl(key, value, optional):
            with contextlib.suppress(*(FileNotFoundError,) if optional else ()):
                (SYSCTLS / key).write_text(value)
        case LoadRules(rules):
            nft.load(rules)
        case AddLinkPair(inner, outer):
            links.add_link_pair(site.route(), inner, outer, site.host_namespace)
            undo.callback(links.delete_link, site.host, outer)
        case AddTap(link, mac):
            fd = tap.open_tap(link)
            try:
                tap.make_persistent(fd)
                tap.set_owner(fd, 0)  # a tap without an owner is everybody's
            finally:
                os.close(fd)
            links.set_mac(site.route(), link, mac)
        case NoLinkLocal(link):
            links.no_link_local(site.host, link)
        case AddAddress(where, link, address, prefix):
            links.add_address(site.route(where), link, address, prefix)
        case SetUp(where, link):
            links.set_up(site.route(where), link)
        case AddDefaultRoute(gateway):
            links.add_default_route(site.route(), gateway)
        case _:
            assert_never(operation)
