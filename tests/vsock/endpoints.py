"""Both ends of a link, in parts: the real guest as a process, and a peer that says whatever a test wants it to say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.vsock.places import Place, new_place
from vm0.guest_bundle import GuestBundle
from vm0.sandbox_common import cgroups
from vm0.vsock_host import GuestClient, GuestListener
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.connection import Connection

START_S = 20.0
ANSWER_S = 15.0
EXIT_S = 15.0
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}

T = TypeVar("T", bound=Message)


class Peer:
    """One end of a connection that reads only when asked and sends anything. `role` is whom it plays."""

    def __init__(self, sock: socket.socket, role: str) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._connection = Connection(role)
        self._messages: deque[tuple[int, Message]] = deque()

    async def send(self, message: Message, seq: int) -> None:
        await self.send_bytes(b"".join(self._connection.frame(message, seq)))

    async def send_bytes(self, data: bytes) -> None:
        async with asyncio.timeout(ANSWER_S):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> tuple[int, Message]:
        """The next message; EOFError at the end of the connection."""
        async with asyncio.timeout(ANSWER_S):
            while not self._messages:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
                if not data:
                    raise EOFError
                for seq, message in self._connection.receive_data(data):
                    assert isinstance(message, Message)
                    self._messages.append((seq, message))
        return self._messages.popleft()

    async def expect(self, kind: type[T], seq: int | None = None) -> T:
        """The next message, which must be of this kind (and operation)."""
        found, message = await self.receive()
        assert isinstance(message, kind), message
        assert seq is None or found == seq
        return message

    async def ended(self) -> None:
        """Read on to the end of the connection, which must come; a reset is an end too."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                await self.receive()

    def close(self) -> None:
        self.sock.close()


class RawHost:
    """A listener for the real guest that hands out its connections as peers."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._sock = place.address.listen(16)

    async def accept(self) -> Peer:
        async with asyncio.timeout(ANSWER_S):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
        return Peer(sock, "host")

    def close(self) -> None:
        self._sock.close()


async def dialled(place: Place) -> Peer:
    """A peer in the guest's place, connected to a listener."""
    return Peer(await place.dial(), "guest")


@dataclass
class Endpoint:
    """A guest process, and the client once it is connected."""

    process: asyncio.subprocess.Process
    folder: Path
    client: GuestClient | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    async def exit_code(self) -> int:
        async with asyncio.timeout(EXIT_S):
            return await self.process.wait()

    def errors(self) -> str:
        """What the guest wrote to its stderr."""
        return (self.folder / "guest.err").read_text()


@contextlib.contextmanager
def command_group() -> Iterator[Path]:
    """A cgroup of our own; whatever is in it at the end is killed."""
    parent = cgroups.writable_parent()
    assert parent is not None
    group = parent / f"vm0-test-{secrets.token_hex(6)}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + EXIT_S
        for path in (*group.iterdir(), group):
            while path.is_dir():
                with contextlib.suppress(OSError):  # what was killed is not reaped yet
                    path.rmdir()
                assert time.monotonic() < deadline, f"{path} cannot be removed"


@contextlib.asynccontextmanager
async def guest_process(
    bundle: GuestBundle, folder: Path, *options: str, group: Path | None = None, prefix: tuple[str, ...] = ()
) -> AsyncIterator[Endpoint]:
    """`guest.pyz vsock-guest` with these options, started through `prefix`; ended afterwards."""
    with open(folder / "guest.err", "wb") as errors:  # noqa: ASYNC230  # a local file, once
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-I", "-S", str(bundle.path), "vsock-guest", "--subreaper", *options),
            *(("--cgroup", str(group)) if group else ()),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd=folder,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    if group is not None:
        cgroups.add(group, process.pid)
    endpoint = Endpoint(process, folder)
    try:
        yield endpoint
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await endpoint.exit_code()
            except TimeoutError:
                process.kill()
                await process.wait()
                raise AssertionError("the guest did not end on SIGTERM") from None
        assert "Traceback" not in endpoint.errors(), endpoint.errors()


@contextlib.asynccontextmanager
async def connected_guest(
    bundle: GuestBundle, folder: Path, *options: str, group: Path | None = None, prefix: tuple[str, ...] = ()
) -> AsyncIterator[Endpoint]:
    """The guest process after the handshake with a real listener."""
    place, token_file, token = new_place(folder), folder / "token", secrets.token_bytes(32)
    token_file.write_bytes(token)
    async with GuestListener(place.address, token=token, build=bundle.build) as listener:
        options = ("--connect", place.option, "--token-file", str(token_file), "--build", bundle.build, *options)
        async with guest_process(bundle, folder, "--give-up-s", "2", *options, group=group, prefix=prefix) as endpoint:
            endpoint.client = await listener.accept(START_S)
            try:
                yield endpoint
            finally:
                endpoint.client.close()
