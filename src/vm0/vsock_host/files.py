"""File transfers between host and guest, streamed under credit: memory is one window, whatever the size."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import BinaryIO

from vm0.sandbox import Reason, SandboxOperationError
from vm0.vsock_host.link import Link, guest_error, unexpected
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.errors import RemoteProtocolError
from vm0.vsock_proto.flow import ReceiveWindow, SendWindow
from vm0.vsock_proto.ring import Ring

STALL_S = 60.0  # a transfer that does not move for this long is given up
READ_AHEAD = WRITE_BEHIND = 4 * m.MAX_CHUNK  # read or written in one go by a thread: each hand-over costs 0.1 ms


class _Transfer:
    """What both directions share: an end, something to wait for, and a limit on standing still."""

    name = "transfer"

    def __init__(self, link: Link) -> None:
        self._link = link
        self._seq = 0
        self._moved = asyncio.Event()
        self._done = False
        self._error: SandboxOperationError | None = None

    def on_lost(self, error: SandboxOperationError) -> None:
        self._fail(SandboxOperationError(self.name, error.reason, error.detail, code=error.code))

    def _fail(self, error: SandboxOperationError) -> bool:
        self._error, self._done = error, True
        self._moved.set()
        return True

    async def _wait(self) -> None:
        """Until something moved; raises what ended the transfer."""
        self._moved.clear()
        await self._within_stall_limit(self._moved.wait())
        self._check()

    async def _within_stall_limit(self, progress: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(STALL_S):
                await progress
        except TimeoutError:
            raise SandboxOperationError(self.name, Reason.TIMEOUT, f"no progress for {STALL_S:g} s") from None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _abandon(self) -> None:
        if not self._done:
            self._link.send(m.Cancel(), self._seq)


class FileWriter(_Transfer):
    """Host to guest."""

    name = "write_file"

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._window = SendWindow(m.FILE_WINDOW)
        self._size = 0

    async def run(self, request: m.WriteFile, source: bytes | BinaryIO) -> int:
        """Returns the size once the file is in place; when this raises, there is no file (or the old one)."""
        self._seq = self._link.begin(self, request, self.name)
        try:
            await self._send_all(source)
            while not self._done:
                await self._wait()
            self._check()
            return self._size
        except BaseException:
            self._abandon()
            raise

    def on_message(self, message: Message) -> bool:
        match message:
            case m.Credit(stream=m.FILE, amount=amount):
                self._window.grant(amount)
            case m.Written(size=size):
                self._size, self._done = size, True
            case m.Error():
                return self._fail(guest_error(self.name, message))
            case _:
                raise unexpected(self.name, message)
        self._moved.set()
        return self._done

    async def _send_all(self, source: bytes | BinaryIO) -> None:
        if isinstance(source, bytes):
            await self._send_piece(memoryview(source))
        else:
            # One window of memory: a piece is read over what the guest has consumed and credited by then.
            ring = Ring(m.FILE_WINDOW)
            while not self._done:
                while not self._window.available and not self._done:
                    await self._wait()
                room = ring.room(min(READ_AHEAD, self._window.available))
                count = await asyncio.to_thread(_read_into, source, room)
                if not count:
                    break
                await self._send_piece(ring.advance(count))
        self._check()
        self._link.send_data(m.LAST, b"", self._seq)

    async def _send_piece(self, view: memoryview) -> None:
        while view and not self._done:
            if not self._window.available:
                await self._wait()
                continue
            piece = view[: min(m.MAX_CHUNK, self._window.available)]
            self._window.spend(len(piece))
            self._link.send_data(0, piece, self._seq)
            view = view[len(piece) :]
            await self._within_stall_limit(self._link.writable())
        self._check()


def _read_into(source: BinaryIO, room: memoryview) -> int:
    """Fill `room` from `source` as far as one read goes; 0 at the end."""
    read_into = getattr(source, "readinto", None)
    if read_into is not None:
        return int(read_into(room) or 0)
    data = source.read(len(room))
    room[: len(data)] = data
    return len(data)


def _write_all(out: BinaryIO, pieces: list[memoryview]) -> None:
    """All of it, also to a file without a buffer, whose `write` may take a part."""
    for piece in pieces:
        while piece:
            piece = piece[out.write(piece) :]


class FileReader(_Transfer):
    """Guest to host."""

    name = "read_file"

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._window = ReceiveWindow(m.FILE_WINDOW)
        self._ring = Ring(m.FILE_WINDOW)
        self._unwritten = 0  # bytes in the ring, its newest ones
        self._left = 0  # of what was asked for: the guest's word for it is not enough, it is our disk that fills
        self._abandoned = False

    async def run(self, request: m.ReadFile, out: BinaryIO) -> int:
        """Returns the size; when this raises, `out` holds a part at most."""
        self._left = request.limit
        self._seq = self._link.begin(self, request, self.name)
        size = 0
        try:
            while True:
                while self._unwritten < WRITE_BEHIND and not self._done:
                    await self._wait()
                self._check()
                if not self._unwritten:
                    return size
                count, self._unwritten = self._unwritten, 0
                await asyncio.to_thread(_write_all, out, self._ring.newest(count))
                size += count
                self._consumed(count)
        except BaseException:
            self._abandoned = True
            self._abandon()
            raise

    def on_message(self, message: Message) -> bool:
        match message:
            case m.FileStat():
                return False
            case m.Data(flags=flags, data=data):
                self._window.received(len(data))
                self._left -= len(data)
                if self._left < 0:
                    raise RemoteProtocolError("more of a file than was asked for")
                if not self._abandoned:
                    self._ring.put(data)
                    self._unwritten += len(data)
                self._done = bool(flags & m.LAST)
            case m.Error():
                return self._fail(guest_error(self.name, message))
            case _:
                raise unexpected(self.name, message)
        self._moved.set()
        return self._done

    def _consumed(self, count: int) -> None:
        credit = self._window.consumed(count)
        if credit and not self._done:
            self._link.send(m.Credit(m.FILE, credit), self._seq)


class DirectoryLister(_Transfer):
    """The names of a directory, in several messages."""

    name = "list_directory"

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._rows: list[tuple[str, int, int, int, int, int, int, str]] = []
        self._limit = 0

    async def run(self, request: m.List) -> list[tuple[str, int, int, int, int, int, int, str]]:
        self._limit = request.limit
        self._seq = self._link.begin(self, request, self.name)
        try:
            while not self._done:
                await self._wait()
            self._check()
            return self._rows
        except BaseException:
            self._abandon()
            raise

    def on_message(self, message: Message) -> bool:
        match message:
            case m.Entries(flags=flags, entries=entries):
                self._rows += entries
                if len(self._rows) > self._limit:
                    raise RemoteProtocolError(f"over {self._limit} names")
                self._done = bool(flags & m.LAST)
            case m.Error():
                return self._fail(guest_error(self.name, message))
            case _:
                raise unexpected(self.name, message)
        self._moved.set()
        return self._done
