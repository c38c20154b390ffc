"""What stands for a VM: a network stack of its own, joined to a tap by copying frames, as a VMM does."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator
from socket import AF_INET, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM, SocketKind, inet_aton
from socket import socket as Socket

from pyroute2.iproute.linux import IPRoute

from tests.host.netns.machine import TIMEOUT_S, Place, set_up
from vm0.microvm.guest import GATEWAY, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, TAP_MAC
from vm0.microvm.netns import Namespace, tap

VNET_HEADER = bytes(10)  # struct virtio_net_hdr: no offload
LINK = "eth0"


class Guest:
    """Has the guest's address; sockets of `socket` are its, `send_frame` puts a frame on its wire as it is."""

    def __init__(self, namespace: Namespace) -> None:
        self.place = Place()
        self._wire = namespace.open_tap(0)
        self._card = self.place.do(self._make_card)
        self._stop, self._stopping = os.pipe()
        self._pump = threading.Thread(target=self._copy, name=f"guest-{namespace.name}")
        self._pump.start()

    def socket(self, kind: SocketKind = SOCK_STREAM) -> Socket:
        made = self.place.do(lambda: Socket(AF_INET, kind))
        made.settimeout(TIMEOUT_S)
        return made

    def connect(self, address: str, port: int) -> Socket:
        connection = self.socket()
        try:
            connection.connect((address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def try_to_connect(self, address: str, port: int) -> Socket:
        """Sends the first packet of a connection, and does not wait for an answer."""
        return begin_connection(self.socket(), address, port)

    def send(self, payload: bytes, address: str, port: int) -> None:
        with self.socket(SOCK_DGRAM) as sender:
            sender.sendto(payload, (address, port))

    def send_frame(self, frame: bytes) -> None:
        os.write(self._wire, VNET_HEADER + frame)

    def close(self) -> None:
        os.close(self._stopping)
        self._pump.join()
        for fd in (self._stop, self._wire, self._card):
            os.close(fd)
        self.place.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _make_card(self) -> int:
        fd = tap.open_tap(LINK)
        with contextlib.closing(IPRoute()) as route:
            number = route.link("get", ifname=LINK)[0]["index"]
            route.link("set", index=number, address=GUEST_MAC)
            set_up(route, LINK, GUEST_ADDRESS, GUEST_PREFIX)
            route.route("add", dst="default", gateway=GATEWAY)
        return fd

    def _copy(self) -> None:
        os.set_blocking(self._wire, False)
        os.set_blocking(self._card, False)
        other = {self._wire: self._card, self._card: self._wire}
        while True:
            readable, _, _ = select.select([self._stop, *other], [], [])
            if self._stop in readable:
                return
            for source in readable:
                with contextlib.suppress(BlockingIOError), _link_gone():
                    os.write(other[source], os.read(source, 70_000))


@contextlib.contextmanager
def _link_gone() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.EBADFD, errno.EIO):
            raise


def begin_connection(connection: Socket, address: str, port: int) -> Socket:
    connection.settimeout(0)
    code = connection.connect_ex((address, port))
    assert code == errno.EINPROGRESS, os.strerror(code)
    return connection


def ethernet(payload: bytes, kind: int, source: str = GUEST_MAC, destination: str = TAP_MAC) -> bytes:
    macs = bytes.fromhex((destination + source).replace(":", ""))
    return macs + struct.pack("!H", kind) + payload


def udp_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram (without its checksum, which is optional)."""
    datagram = struct.pack("!HHHH", 4321, port, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, IPPROTO_UDP, 0)
    header += inet_aton(source) + inet_aton(destination)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + datagram


def checksum(header: bytes) -> int:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
