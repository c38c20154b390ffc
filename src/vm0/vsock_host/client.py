"""What the host calls: every operation of a connected guest. All may run at the same time."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import BinaryIO, TypeVar

from vm0.sandbox import (
    DirectoryEntry,
    ExecRequest,
    ExecResult,
    FileKind,
    FileStat,
    Reason,
    RestoreRequest,
    SandboxOperationError,
)
from vm0.sandbox.types import CAPTURE_LIMIT
from vm0.vsock_host.files import DirectoryLister, FileReader, FileWriter
from vm0.vsock_host.link import Link, Request
from vm0.vsock_host.process import GuestProcess
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message

A = TypeVar("A", bound=Message)

ANSWER_S = 30.0
PING_S = 10.0
SHUTDOWN_S = 8.0  # the guest itself gives up after 5
MAX_NAMES = 100_000
KINDS = {
    m.KIND_FILE: FileKind.FILE,
    m.KIND_DIRECTORY: FileKind.DIRECTORY,
    m.KIND_SYMLINK: FileKind.SYMLINK,
    m.KIND_OTHER: FileKind.OTHER,
}


class GuestClient:
    """A guest after the handshake. Errors are SandboxOperationError: GUEST (it refused; `code` says why), CRASHED (the
    link is gone), TIMEOUT (no answer; whether it was done is unknown), PROTOCOL (it misbehaved; the link is closed).
    Cancelling a call cancels the operation in the guest; the link stays usable."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def lost(self) -> str:
        """Wait for the end of the link; returns why."""
        return await asyncio.shield(self._link.lost)

    @property
    def is_lost(self) -> bool:
        return self._link.lost.done()

    async def ping(self, limit_s: float = PING_S) -> None:
        """Returns when the guest's loop has answered."""
        await self._request("ping", m.Ping(), m.Pong, limit_s)

    async def exec(self, request: ExecRequest) -> ExecResult:
        """Run a command to its end; limits of None count as the default capture limit here."""
        if request.stdout_limit is None or request.stderr_limit is None:
            request = dataclasses.replace(
                request,
                stdout_limit=CAPTURE_LIMIT if request.stdout_limit is None else request.stdout_limit,
                stderr_limit=CAPTURE_LIMIT if request.stderr_limit is None else request.stderr_limit,
            )
        return await GuestProcess(self._link, request).run()

    async def start_process(self, request: ExecRequest) -> GuestProcess:
        """Start a command whose unlimited streams are to be read."""
        return await GuestProcess(self._link, request).start()

    async def write_file(
        self, path: str, data: bytes | BinaryIO, *, mode: int = 0o644, user: str = "", private: bool = False
    ) -> int:
        """See `vm0.sandbox.Sandbox.write_file`."""
        flags = m.PRIVATE if private else 0
        return await FileWriter(self._link).run(m.WriteFile(path, flags, mode, user), data)

    async def read_file(self, path: str, out: BinaryIO, *, limit: int | None = None) -> int:
        """See `vm0.sandbox.Sandbox.read_file`."""
        return await FileReader(self._link).run(m.ReadFile(path, m.UNLIMITED if limit is None else limit), out)

    async def stat(self, path: str, *, follow: bool = True) -> FileStat | None:
        """None when there is no such file."""
        try:
            answer = await self._request("stat", m.Stat(path, int(follow)), m.FileStat)
        except SandboxOperationError as exc:
            if exc.code == "not_found":
                return None
            raise
        row = (answer.kind, answer.mode, answer.uid, answer.gid, answer.size, answer.mtime_ns, answer.target)
        return self._stat("stat", row)

    async def list_directory(self, path: str) -> list[DirectoryEntry]:
        """Sorted by name; more than 100,000 names are an error (`too_large`)."""
        rows = await DirectoryLister(self._link).run(m.List(path, MAX_NAMES))
        return [DirectoryEntry(name=row[0], stat=self._stat("list_directory", row[1:])) for row in rows]

    async def quiesce(self) -> int:
        """Close admission; returns the number of operations that still run."""
        return (await self._request("quiesce", m.Quiesce(), m.Quiesced)).running

    async def resume(self) -> None:
        await self._request("resume", m.Resume(), m.Done)

    async def restore(self, request: RestoreRequest) -> None:
        """Make a restored guest itself; must be the first request after a restore."""
        message = m.Restore(
            realtime_ns=request.realtime_ns,
            entropy=request.entropy,
            token=request.token,
            timezone=request.timezone,
            hostname=request.hostname,
            machine_id=request.machine_id,
            address=request.address,
            gateway=request.gateway,
            nameserver=request.nameserver,
        )
        await self._request("restore", message, m.Done)

    async def shutdown(self) -> None:
        """Returns when nothing runs in the guest any more. It does not reconnect afterwards; `close` the link then."""
        await self._request("shutdown", m.Shutdown(), m.Done, SHUTDOWN_S)

    def close(self, why: str = "closed by the host") -> None:
        """Drop the link; the guest kills what runs. Idempotent."""
        self._link.close(why)

    async def _request(self, name: str, message: Message, kind: type[A], limit_s: float = ANSWER_S) -> A:
        answer = await Request(self._link, name).answer(message, limit_s)
        if not isinstance(answer, kind):
            raise self._misbehaved(name, f"{type(answer).__name__} does not answer {name}")
        return answer

    def _stat(self, name: str, row: tuple[int, int, int, int, int, int, str]) -> FileStat:
        kind, mode, uid, gid, size, mtime_ns, target = row
        if kind not in KINDS:
            raise self._misbehaved(name, f"a file of kind {kind}")
        return FileStat(kind=KINDS[kind], mode=mode, uid=uid, gid=gid, size=size, mtime_ns=mtime_ns, target=target)

    def _misbehaved(self, name: str, what: str) -> SandboxOperationError:
        self._link.close(f"protocol error: {what}")
        return SandboxOperationError(name, Reason.PROTOCOL, what)
