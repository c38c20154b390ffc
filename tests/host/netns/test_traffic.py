"""Which packets of a VM arrive where: a real network stack behind the tap, real sockets on host and Internet.

What must not arrive is followed by something that does on the same way, so no test waits for nothing to happen.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from pyroute2.iproute.linux import IPRoute

from tests.host.netns.guest import Guest, begin_connection, ethernet, udp_packet
from tests.host.netns.machine import (
    INTERNET,
    TIMEOUT_S,
    UPLINK,
    PrivateHost,
    Sniffer,
    connections,
    heard_nothing,
    listen,
    netlink,
)
from vm0.microvm import threads
from vm0.microvm.guest import BRIDGE_PORT, GATEWAY, GUEST_ADDRESS
from vm0.microvm.netns import Namespace, nft
from vm0.microvm.netns.policy import host_rules_removal

pytestmark = pytest.mark.host

OTHER_PORT = 9999
ETH_IPV4, ETH_IPV6 = 0x0800, 0x86DD


@contextlib.asynccontextmanager
async def vm(host: PrivateHost, resolver: str | None = None) -> AsyncIterator[tuple[Namespace, Guest]]:
    async with host.pool(resolver=resolver) as pool:
        namespace = await pool.acquire()
        with Guest(namespace) as guest:
            yield namespace, guest


def answer_one(bridge: socket.socket, connection: socket.socket) -> str:
    """Let a byte go each way; the address that the bridge saw."""
    accepted, (peer, _) = bridge.accept()
    with accepted, connection:
        accepted.settimeout(TIMEOUT_S)
        connection.sendall(b"?")
        assert accepted.recv(1) == b"?"
        accepted.sendall(b"!")
        assert connection.recv(1) == b"!"
    return str(peer)


async def test_the_bridge_is_at_the_gateway_and_sees_the_vms_own_address(host: PrivateHost) -> None:
    async with vm(host) as (namespace, guest):
        with listen(namespace.host_address, BRIDGE_PORT) as bridge:
            assert answer_one(bridge, guest.connect(GATEWAY, 80)) == namespace.source_address
            assert answer_one(bridge, guest.connect(namespace.host_address, BRIDGE_PORT)) == namespace.source_address


async def test_two_vms_with_the_same_address_are_told_apart(host: PrivateHost) -> None:
    async with host.pool() as pool:
        first, second = await pool.acquire(), await pool.acquire()
        with Guest(first) as one, Guest(second) as two, listen("0.0.0.0", BRIDGE_PORT) as bridge:
            assert answer_one(bridge, one.connect(GATEWAY, 80)) == first.source_address
            assert answer_one(bridge, two.connect(GATEWAY, 80)) == second.source_address


async def test_the_internet_sees_the_host_and_answers(host: PrivateHost) -> None:
    async with vm(host) as (_, guest):
        with host.internet.do(lambda: listen(INTERNET, 443)) as server:
            assert answer_one(server, guest.connect(INTERNET, 443)) == UPLINK


async def test_no_other_port_of_the_host_is_reachable(host: PrivateHost) -> None:
    async with vm(host) as (namespace, guest):
        with (
            contextlib.ExitStack() as stack,
            listen("0.0.0.0", OTHER_PORT) as service,
            listen("0.0.0.0", 80) as web,
            listen("0.0.0.0", 53, socket.SOCK_DGRAM) as resolver,
            listen("0.0.0.0", BRIDGE_PORT) as bridge,
        ):
            for address in (namespace.host_address, UPLINK, GATEWAY, namespace.source_address):
                for port in (OTHER_PORT, 80, BRIDGE_PORT):
                    if (address, port) not in ((GATEWAY, 80), (namespace.host_address, BRIDGE_PORT)):
                        stack.enter_context(guest.try_to_connect(address, port))
                guest.send(b"?", address, 53)
            assert answer_one(bridge, guest.connect(GATEWAY, 80)) == namespace.source_address
            assert all(map(heard_nothing, (service, web, resolver, bridge)))


@pytest.mark.parametrize("table", ["with the host's table", "without it"])
async def test_another_vm_and_its_bridge_are_out_of_reach(host: PrivateHost, table: str) -> None:
    """The namespace's own rules see to that as well, should somebody flush the host's."""
    async with host.pool() as pool:
        mine, other = await pool.acquire(), await pool.acquire()
        with (
            contextlib.ExitStack() as stack,
            Guest(mine) as guest,
            Guest(other) as neighbour,
            listen(mine.host_address, BRIDGE_PORT) as bridge,
            listen(other.host_address, BRIDGE_PORT) as foreign_bridge,
            neighbour.place.do(lambda: listen("0.0.0.0", OTHER_PORT)) as foreign_service,
            contextlib.closing(Sniffer(other.host_link)) as sniffer,
        ):
            if table == "without it":
                nft.load(host_rules_removal())
            for address, port in ((other.host_address, BRIDGE_PORT), (other.source_address, OTHER_PORT)):
                stack.enter_context(guest.try_to_connect(address, port))
            assert answer_one(bridge, guest.connect(GATEWAY, 80)) == mine.source_address
            assert heard_nothing(foreign_bridge)
            assert heard_nothing(foreign_service)
            with neighbour.connect(GATEWAY, 80) as connection:
                connection.sendall(b"a marker")
                frames = sniffer.until(b"a marker")
            assert not any(socket.inet_aton(mine.source_address) in frame for frame in frames)


async def test_the_hosts_table_alone_keeps_namespaces_apart(host: PrivateHost) -> None:
    """Sockets inside the namespace itself, and its own rules gone."""
    async with host.pool() as pool:
        mine, other = await pool.acquire(), await pool.acquire()

        def connect() -> socket.socket:
            return socket.create_connection((mine.host_address, BRIDGE_PORT), TIMEOUT_S)

        threads.call_inside(mine.netns_path, lambda: nft.load(host_rules_removal()))
        with (
            contextlib.ExitStack() as stack,
            listen(mine.host_address, BRIDGE_PORT) as bridge,
            listen(other.host_address, BRIDGE_PORT) as foreign_bridge,
            listen("0.0.0.0", OTHER_PORT) as service,
        ):
            for address, port in (
                (other.host_address, BRIDGE_PORT),
                (other.source_address, BRIDGE_PORT),
                (mine.host_address, OTHER_PORT),
                (UPLINK, OTHER_PORT),
                (UPLINK, BRIDGE_PORT),
            ):
                made = threads.call_inside(mine.netns_path, socket.socket)
                stack.enter_context(begin_connection(made, address, port))
            assert answer_one(bridge, threads.call_inside(mine.netns_path, connect)) == mine.source_address
            assert heard_nothing(foreign_bridge)
            assert heard_nothing(service)


async def test_forged_sources_go_nowhere(host: PrivateHost) -> None:
    async with vm(host) as (namespace, guest):
        with contextlib.closing(Sniffer(namespace.host_link)) as sniffer:
            for source in ("10.200.0.6", namespace.source_address, GATEWAY, "192.168.241.3", "203.0.113.9", "0.0.0.0"):
                guest.send_frame(ethernet(udp_packet(source, INTERNET, 9, b"forged"), ETH_IPV4))
            guest.send_frame(ethernet(udp_packet(GUEST_ADDRESS, INTERNET, 9, b"genuine"), ETH_IPV4))
            frames = sniffer.until(b"genuine")
        assert not any(b"forged" in frame for frame in frames)


async def test_the_host_drops_what_comes_by_the_wrong_link(host: PrivateHost) -> None:
    """Frames written below the namespace's rules, with the address of another slot, and of nobody."""
    async with host.pool() as pool:
        mine, other = await pool.acquire(), await pool.acquire()

        host_mac = mac_of(mine.host_link)
        with (
            threads.call_inside(mine.netns_path, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)) as wire,
            contextlib.closing(host.internet.do(lambda: Sniffer("uplink"))) as sniffer,
        ):
            wire.bind(("veth0", 0))
            for source in (other.source_address, mine.host_address, "203.0.113.9", INTERNET, UPLINK):
                wire.sendto(udp_packet(source, INTERNET, 9, b"forged"), ("veth0", ETH_IPV4, 0, 0, host_mac))
            genuine = udp_packet(mine.source_address, INTERNET, 9, b"genuine")
            wire.sendto(genuine, ("veth0", ETH_IPV4, 0, 0, host_mac))
            frames = sniffer.until(b"genuine")
        assert not any(b"forged" in frame for frame in frames)


async def test_ipv6_goes_nowhere(host: PrivateHost) -> None:
    async with vm(host) as (namespace, guest):
        with contextlib.closing(Sniffer(namespace.host_link)) as sniffer:
            header = struct.pack("!IHBB", 6 << 28, 8, socket.IPPROTO_UDP, 64)
            for source in ("fe80::1", "fd00::2"):
                addresses = b"".join(socket.inet_pton(socket.AF_INET6, name) for name in (source, "2001:db8::1"))
                guest.send_frame(ethernet(header + addresses + struct.pack("!HHHH", 1, 9, 8, 0), ETH_IPV6))
            guest.send(b"genuine", INTERNET, 9)
            frames = sniffer.until(b"genuine")
        assert not any(frame[12:14] == struct.pack("!H", ETH_IPV6) for frame in frames)


async def test_link_local_addresses_are_not_forwarded(host: PrivateHost) -> None:
    async with vm(host) as (_, guest):
        with contextlib.closing(host.internet.do(lambda: Sniffer("uplink"))) as sniffer:
            guest.send(b"metadata, please", "169.254.169.254", 80)
            guest.send(b"genuine", INTERNET, 9)
            frames = sniffer.until(b"genuine")
        assert not any(b"metadata" in frame for frame in frames)


@pytest.mark.parametrize("where", ["on the Internet", "on the host"])
async def test_dns_at_the_gateway_is_the_hosts_resolver(host: PrivateHost, where: str) -> None:
    address = INTERNET if where == "on the Internet" else UPLINK
    async with vm(host, resolver=address) as (namespace, guest):
        place = host.internet.do if where == "on the Internet" else netlink
        seen_as = UPLINK if where == "on the Internet" else namespace.source_address
        with (
            place(lambda: listen(address, 53, socket.SOCK_DGRAM)) as resolver,
            place(lambda: listen(address, 53)) as tcp_resolver,
            guest.socket(socket.SOCK_DGRAM) as client,
        ):
            client.sendto(b"who is it", (GATEWAY, 53))
            question, peer = resolver.recvfrom(512)
            assert (question, peer[0]) == (b"who is it", seen_as)
            resolver.sendto(b"nobody", peer)
            assert client.recvfrom(512) == (b"nobody", (GATEWAY, 53))
            assert answer_one(tcp_resolver, guest.connect(GATEWAY, 53)) == seen_as


async def test_without_a_resolver_dns_is_dropped(host: PrivateHost) -> None:
    async with vm(host, resolver=None) as (namespace, guest):
        with contextlib.closing(Sniffer(namespace.host_link)) as sniffer:
            guest.send(b"who is it", GATEWAY, 53)
            guest.send(b"genuine", INTERNET, 9)
            frames = sniffer.until(b"genuine")
        assert not any(b"who is it" in frame for frame in frames)


async def test_neighbours_of_the_host_reach_neither_vms_nor_bridges(host: PrivateHost) -> None:
    def add_route() -> None:
        with contextlib.closing(IPRoute()) as route:
            route.route("add", dst="10.200.0.0/16", gateway=UPLINK)

    async with vm(host) as (namespace, guest):
        host.internet.do(add_route)
        with (
            contextlib.ExitStack() as stack,
            listen("0.0.0.0", BRIDGE_PORT) as bridge,
            listen(UPLINK, OTHER_PORT) as service,
            guest.place.do(lambda: listen("0.0.0.0", OTHER_PORT)) as in_the_guest,
            contextlib.closing(threads.call_inside(namespace.netns_path, lambda: Sniffer("veth0"))) as sniffer,
        ):
            for address, port in (
                (namespace.host_address, BRIDGE_PORT),
                (namespace.source_address, OTHER_PORT),
            ):
                stack.enter_context(begin_connection(host.internet.do(socket.socket), address, port))
            # by the same link, to a port of the host that is open: all before it has been decided on
            with host.internet.do(lambda: socket.create_connection((UPLINK, OTHER_PORT))), service.accept()[0]:
                pass
            assert heard_nothing(bridge)
            assert heard_nothing(in_the_guest)
            with guest.connect(GATEWAY, 80), bridge.accept()[0] as accepted:
                accepted.sendall(b"a marker")
                frames = sniffer.until(b"a marker")
            assert not any(socket.inet_aton(INTERNET) in frame for frame in frames)


async def test_connections_die_with_the_release(host: PrivateHost) -> None:
    async with host.pool() as pool:
        namespace = await pool.acquire()
        with (
            Guest(namespace) as guest,
            host.internet.do(lambda: listen(INTERNET, 443)) as server,
            listen(namespace.host_address, BRIDGE_PORT) as bridge,
            guest.connect(INTERNET, 443),
            guest.connect(GATEWAY, 80),
            server.accept()[0] as outside,
            bridge.accept()[0],
            contextlib.closing(host.internet.do(lambda: Sniffer("uplink"))) as sniffer,
        ):
            guest.send(b"?", INTERNET, 9)
            sniffer.until(b"?")
            assert len(connections(namespace.source_address)) == 3
            await pool.release(namespace)
            assert connections(namespace.source_address) == []
            outside.settimeout(TIMEOUT_S)
            outside.sendall(b"still there?")
            with pytest.raises(ConnectionResetError):  # the host knows of no such connection
                outside.recv(1)


def mac_of(link: str) -> bytes:
    def read() -> str:
        with contextlib.closing(IPRoute()) as route:
            return str(route.link("get", ifname=link)[0].get_attr("IFLA_ADDRESS"))

    return bytes.fromhex(netlink(read).replace(":", ""))
