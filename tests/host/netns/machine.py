"""Machines for network tests: namespaces held by a descriptor, and an inventory of what a pool could leave."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from vm0.microvm import threads
from vm0.microvm.netns import NamespacePool
from vm0.microvm.netns.names import OWN_NAMESPACE
from vm0.microvm.syscalls import CLONE_NEWNET, MNT_DETACH, setns, umount, unshare

T = TypeVar("T")

# RFC 5737: what stands for the Internet, and the host's address there
INTERNET, UPLINK = "198.51.100.1", "198.51.100.2"
TIMEOUT_S = 5.0


class Place:
    """A network namespace without a name. Sockets made in it stay in it, whoever uses them."""

    def __init__(self) -> None:
        self.fd = threads.start(self._make, "place").result()

    @staticmethod
    def _make() -> int:
        unshare(CLONE_NEWNET)
        return os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    def do(self, function: Callable[[], T]) -> T:
        return threads.call_inside(self.path, function)

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class PrivateHost:
    """This thread's network namespace, made for the test: loopback, and a link to a namespace that is the Internet."""

    internet: Place
    directory: pathlib.Path

    @property
    def run_dir(self) -> pathlib.Path:
        return self.directory / "run"

    @property
    def netns_dir(self) -> pathlib.Path:
        return self.directory / "netns"

    def pool(self, *, spare: int = 0, parallel: int = 4, resolver: str | None = None) -> NamespacePool:
        return NamespacePool(self.run_dir, netns_dir=self.netns_dir, spare=spare, parallel=parallel, resolver=resolver)


@contextlib.contextmanager
def private_host(directory: pathlib.Path) -> Iterator[PrivateHost]:
    before = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    unshare(CLONE_NEWNET)
    internet = Place()
    try:
        with contextlib.closing(IPRoute()) as route:
            route.link("add", ifname="uplink", kind="veth", peer={"ifname": "uplink", "net_ns_fd": internet.fd})
            set_up(route, "lo")
            set_up(route, "uplink", UPLINK)
            route.route("add", dst="default", gateway=INTERNET)
        internet.do(_set_up_internet)
        yield PrivateHost(internet, directory)
    finally:
        setns(before, CLONE_NEWNET)
        os.close(before)
        internet.close()
        with contextlib.suppress(OSError):
            umount(str(directory / "netns"), MNT_DETACH)


def _set_up_internet() -> None:
    with contextlib.closing(IPRoute()) as route:
        set_up(route, "lo")
        set_up(route, "uplink", INTERNET)


def set_up(route: IPRoute, link: str, address: str = "", prefix: int = 24) -> None:
    number = route.link("get", ifname=link)[0]["index"]
    if address:
        route.addr("add", index=number, address=address, prefixlen=prefix)
    route.link("set", index=number, state="up")


def inventory(host: PrivateHost) -> dict[str, list[str]]:
    """What exists in the private host, of every kind that a pool touches."""
    return {
        "namespaces": _files(host.netns_dir),
        "leases": _files(host.run_dir),
        "mounts": _mounts(host.netns_dir),
        "links": sorted(name for _, name in socket.if_nameindex()),
        "rules": ruleset().splitlines(),
        "connections": connections(),
    }


def ruleset() -> str:
    return run("nft", "list", "ruleset")


def run(*command: str) -> str:
    """What it prints; raises if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def add_link(name: str, address: str) -> None:
    """On the host of the calling thread, with an address of a /30."""
    with contextlib.closing(IPRoute()) as route:
        route.link("add", ifname=name, kind="veth", peer={"ifname": f"p{name[-5:]}"})
        set_up(route, name, address, 30)


def connections(address: str = "") -> list[str]:
    """Conntrack entries that mention the address, of the namespace of the calling thread."""

    def read() -> list[str]:
        with NFCTSocket() as conntrack:
            return [str(entry["attrs"]) for entry in conntrack.dump()]

    return [entry for entry in netlink(read) if f"'{address}'" in entry or not address]


def netlink(function: Callable[[], T]) -> T:
    """pyroute2's blocking calls run a loop of their own, which no thread can that has one running."""
    return threads.start(function, "netlink").result()


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def _mounts(folder: pathlib.Path) -> list[str]:
    points = (line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())
    return sorted(point for point in points if pathlib.Path(point).is_relative_to(folder))


def listen(address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A bound socket of the calling thread's namespace, with a time limit; listening if it is TCP."""
    listener = socket.socket(socket.AF_INET, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(TIMEOUT_S)
    listener.bind((address, port))
    if kind == socket.SOCK_STREAM:
        listener.listen()
    return listener


def heard_nothing(listener: socket.socket) -> bool:
    """Whether nobody has connected or sent anything so far."""
    listener.settimeout(0)
    try:
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(1)
    except BlockingIOError:
        return True
    finally:
        listener.settimeout(TIMEOUT_S)
    return False


class Sniffer:
    """Every frame that a link of the calling thread's namespace receives, from now on."""

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))  # ETH_P_ALL
        self._socket.bind((link, 0x0003))
        self._socket.settimeout(TIMEOUT_S)

    def until(self, marker: bytes) -> list[bytes]:
        """The frames before the first that contains the marker."""
        frames = iter(lambda: self._socket.recv(65536), None)
        return list(itertools.takewhile(lambda frame: marker not in frame, frames))

    def close(self) -> None:
        self._socket.close()
