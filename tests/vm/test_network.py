"""The network of a real guest: the bridge, names and the way out. Packets themselves: `tests/host/netns`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from tests.support.capabilities import require
from tests.vm.conftest import NewSandbox
from vm0.microvm.guest import BRIDGE_PORT
from vm0.sandbox import SourceAddress
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm

HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nyes"
CURL = "curl -sS -m 10 --connect-timeout 4"


@contextlib.asynccontextmanager
async def listening(address: str, port: int) -> AsyncIterator[list[str]]:
    """A web server that says yes; who asked."""
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HTTP)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, address, port)
    async with server:
        yield seen


def access(sandbox: QemuSandbox) -> SourceAddress:
    return sandbox.api_access


async def test_the_bridge_is_reached_by_its_name_and_knows_the_guest(sandbox: QemuSandbox) -> None:
    at = access(sandbox)
    async with listening(at.listen_ip, at.listen_port) as seen:
        result = await sandbox.exec(sh(f"{CURL} {at.guest_url}/api", merge_stderr=True))
    assert (result.stdout.data, seen) == (b"yes", [at.source_ip])


async def test_a_guest_reaches_no_other_guests_bridge_and_nothing_else_of_the_host(new_sandbox: NewSandbox) -> None:
    one, two = await new_sandbox(), await new_sandbox()
    await asyncio.gather(one.start(), two.start())
    mine, other = access(one), access(two)
    assert mine.listen_ip != other.listen_ip
    async with listening(other.listen_ip, BRIDGE_PORT) as seen, listening("0.0.0.0", 0) as seen_elsewhere:
        for target in (f"{other.listen_ip}:{BRIDGE_PORT}", other.source_ip, f"{mine.listen_ip}:22"):
            result = await one.exec(sh(f"{CURL} http://{target}/ 2>&1", timeout_s=30))
            assert result.exit_code in (7, 28), (target, result)  # refused, or no answer
        allowed = await two.exec(sh(f"{CURL} {other.guest_url}/"))
        assert allowed.stdout.data == b"yes"
    assert (seen, seen_elsewhere) == ([other.source_ip], [])


async def test_names_and_the_way_out(sandbox: QemuSandbox) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.254", 9))  # sends no packet, and TEST-NET-1 is nobody's
        except OSError:
            require(False, "this machine has no way out")
        own = probe.getsockname()[0]
    text = "ip route get 192.0.2.254 | head -1; cat /etc/resolv.conf; getent hosts api.vm0.internal"
    route, resolver, api = (await sandbox.exec(sh(text))).stdout.data.decode().splitlines()[:3]
    assert "via 192.168.241.1 dev eth0 src 192.168.241.2" in route
    assert resolver == "nameserver 192.168.241.1" and api.split() == ["192.168.241.1", "api.vm0.internal"]
    blocked = await sandbox.exec(sh(f"{CURL} http://{own}:22/ 2>&1", timeout_s=30))
    assert blocked.exit_code in (7, 28), "the host's own address outside is the host all the same"


async def test_no_ipv6(sandbox: QemuSandbox) -> None:
    result = await sandbox.exec(sh("ip -6 address | wc -l; curl -sS -m 3 'http://[2001:db8::1]/' 2>&1; true"))
    assert result.stdout.data.splitlines()[0] == b"0"
