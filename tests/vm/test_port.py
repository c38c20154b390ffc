"""The guest's end of a real virtio-serial port: hosts come and go, and the guest is there for the next one.

QEMU listens here instead of dialling, so that there can be a second connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.vm.conftest import MEMORY_MIB
from tests.vsock.endpoints import Peer
from tests.vsock.test_bad_hosts import command
from vm0.image import Image
from vm0.microvm import boot, memory
from vm0.microvm.disk import make_disk
from vm0.sandbox_qemu.argv import Accelerator, Descriptors, MemoryUse, Shape, plan_argv
from vm0.sandbox_qemu.machines import machine_for
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.framing import frame_header

pytestmark = pytest.mark.vm

BOOT_S = 120.0
BACK_S = 5.0  # for a guest that waits to greet the next host; a few ms on an idle machine
SEEN_S = 0.05  # for a guest to see that a host has left


class Machine:
    def __init__(self, path: Path, process: asyncio.subprocess.Process) -> None:
        self._path, self.process = path, process

    async def connect(self) -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self._path))
        return Peer(sock, "host")

    async def greeted(self, limit_s: float = BOOT_S) -> tuple[Peer, m.Ready]:
        peer = await self.connect()
        async with asyncio.timeout(limit_s):
            while True:
                with contextlib.suppress(TimeoutError):  # a peer's own, shorter patience
                    return peer, await peer.expect(m.Ready, 0)


@pytest.fixture
async def machine(image: Image) -> AsyncIterator[Machine]:
    shape = Shape(machine=machine_for(), accelerator=Accelerator.TCG, vcpus=1, memory_mib=MEMORY_MIB)
    token = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="vm0-port-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_disk(folder / "disk", 64)

        def opened(path: Path, flags: int = os.O_RDONLY) -> int:
            fd = os.open(path, flags)
            stack.callback(os.close, fd)
            return fd

        fds = Descriptors(
            kernel=opened(image.vmlinuz),
            initramfs=opened(image.initramfs),
            root=opened(image.rootfs),
            disk=opened(folder / "disk", os.O_RDWR),
            memory=memory.new_memory(MEMORY_MIB),
            link=0,
            console=opened(Path("/dev/null"), os.O_RDWR),
            monitor=opened(Path("/dev/null"), os.O_RDWR),
        )
        stack.callback(os.close, fds.memory)
        parameters = boot.kernel_parameters(boot.Boot(console=shape.machine.console, token=token))
        argv = plan_argv(shape, fds, parameters, MemoryUse.SHARED, incoming=False)
        ends = {
            "socket,id=link,fd=0": f"socket,id=link,path={folder}/link,server=on,wait=off",
            f"socket,id=console,fd={fds.console}": f"file,id=console,path={folder}/console",
            f"socket,id=monitor,fd={fds.monitor}": "null,id=monitor",
        }
        process = await asyncio.create_subprocess_exec(
            *(ends.get(word, word) for word in argv),
            pass_fds=(fds.kernel, fds.initramfs, fds.root, fds.disk, fds.memory),
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            while not (folder / "link").exists():
                assert process.returncode is None
                await asyncio.sleep(0.01)
            yield Machine(folder / "link", process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            print((folder / "console").read_text(errors="replace"))


async def left(peer: Peer) -> None:
    peer.close()
    await asyncio.sleep(SEEN_S)


async def answers(peer: Peer, command: m.Exec, seq: int) -> bytes:
    """What a command says, and that it ends well."""
    await peer.send(command, seq)
    output = b""
    while True:
        found, message = await peer.receive()
        assert found == seq
        if isinstance(message, m.Output):
            output += message.data
        elif isinstance(message, m.Result):
            assert (message.ended, message.exit_code) == (m.EXITED, 0), message
            return output
        else:
            assert isinstance(message, m.Started)


@pytest.mark.timeout(300)
async def test_hosts_come_and_go(machine: Machine) -> None:
    peer, first = await machine.greeted()
    await peer.send(m.Ping(), 1)
    await peer.expect(m.Pong, 1)
    await peer.send(command("sleep 1234"), 2)
    await peer.expect(m.Started, 2)

    for _ in range(3):  # each is greeted again, at once, by the same guest
        await left(peer)
        begun = time.monotonic()
        peer, again = await machine.greeted(BACK_S)
        print(f"greeted after {(time.monotonic() - begun) * 1000:.1f} ms")
        assert again == first
    gone = command("cat /proc/[0-9]*/comm | grep -cx sleep || true")
    assert await answers(peer, gone, 1) == b"0\n", "what ran for a host ends with it"

    # What breaks the rules is not answered; the guest cannot hang up, but it begins anew with whoever comes next.
    await peer.send_bytes(b"\xff" * 64)
    await peer.send_bytes(frame_header(m.Ping.TYPE, 9, 0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await peer.receive()
    await left(peer)
    peer, again = await machine.greeted(BACK_S)
    assert again == first
    assert await answers(peer, command("echo here"), 1) == b"here\n"

    # A flood that stays unread, then a host that leaves in the middle of it.
    await peer.send(command("yes | head -c 30000000"), 2)
    await peer.expect(m.Started, 2)
    await left(peer)
    peer, again = await machine.greeted(BACK_S)
    assert again == first
    await peer.send(m.Shutdown(), 1)
    await peer.expect(m.Done, 1)
    peer.close()
    async with asyncio.timeout(60):
        assert await machine.process.wait() == 0, "the guest switches its machine off"
