"""Forgetting connections on kernels that cannot do it in one request."""

from __future__ import annotations

import socket

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from tests.host.netns.machine import INTERNET, PrivateHost, add_link, connections, netlink, run
from vm0.microvm.netns import conntrack

pytestmark = pytest.mark.host

ONE, ANOTHER = "10.200.0.2", "10.200.0.6"
TRACK = "add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c ct state new accept"


def begin_connections(source: str) -> None:
    """One of TCP, two of UDP."""
    for kind, port in ((socket.SOCK_STREAM, 11), (socket.SOCK_DGRAM, 9), (socket.SOCK_DGRAM, 10)):
        with socket.socket(socket.AF_INET, kind) as sender:
            sender.bind((source, 0))
            sender.setblocking(False)
            sender.connect_ex((INTERNET, port))
            if kind == socket.SOCK_DGRAM:
                sender.send(b"?")


def test_entries_are_forgotten_one_by_one_where_the_kernel_cannot_do_better(
    host: PrivateHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NetlinkError(22)  # EINVAL, as Linux 6.1 does

    run("nft", TRACK)
    for link, address in (("one0", ONE), ("another0", ANOTHER)):
        add_link(link, address)
        begin_connections(address)
    assert len(connections(ONE)) == len(connections(ANOTHER)) == 3
    monkeypatch.setattr(conntrack, "_delete_matching", refuse)
    for _ in range(2):
        netlink(lambda: conntrack.forget(ONE))
    assert connections(ONE) == []
    assert len(connections(ANOTHER)) == 3
