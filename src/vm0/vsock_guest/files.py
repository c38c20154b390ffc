"""File transfers and look-ups. A transfer has a worker thread, because a disk may keep it waiting for seconds.

A written file appears complete or not at all: it grows under a temporary name beside its place and is renamed there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import stat
import threading

from vm0.vsock_proto import messages as m
from vm0.vsock_proto.flow import ReceiveWindow, SendWindow
from vm0.vsock_proto.ring import Ring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vm0.vsock_guest.identity import Identity
    from vm0.vsock_guest.loop import Loop
    from vm0.vsock_proto.codec import Message

ENTRIES_PER_MESSAGE = 256  # 256 × (two 4 KiB names at most) stays far below a frame in practice; checked by size too
ENTRIES_BYTES = 256 * 1024
CREDIT_BYTES = m.FILE_WINDOW // 4

ERRNO_REASONS = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
    errno.EEXIST: "exists",
    errno.EISDIR: "not_a_file",
    errno.ELOOP: "not_a_file",
    errno.ENXIO: "not_a_file",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "too_large",
    errno.ENAMETOOLONG: "invalid",
    errno.EINVAL: "invalid",
}


class RequestError(Exception):
    """a request that cannot be carried out; `reason` is one of the protocol's"""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def check_absolute(path: str) -> str:
    """The path itself; what is relative has no meaning here: the loop's directory changes while commands start."""
    if not path.startswith("/"):
        raise RequestError("invalid", f"{path}: not an absolute path")
    return path


def reason_of(exc: Exception) -> str:
    """The protocol's word for what went wrong."""
    if isinstance(exc, RequestError):
        return exc.reason
    if isinstance(exc, OSError):
        return ERRNO_REASONS.get(exc.errno or 0, "io")
    if isinstance(exc, ValueError):
        return "invalid"  # a name with a NUL, for one
    return "not_found" if isinstance(exc, KeyError) else "internal"


class Transfer:
    """A worker thread with an end that is told to the loop once: `finished(transfer, error or None)`."""

    def __init__(
        self,
        loop: Loop,
        request: Message,
        send: Callable[[Message], None],
        finished: Callable[[Transfer, Exception | None], None],
    ) -> None:
        self._loop, self._request, self._send, self._finished = loop, request, send, finished
        self._cancelled = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._thread, name=type(self).__name__, daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def credit(self, amount: int) -> None:
        """Credit for the file stream came in; only a sender cares."""

    def _thread(self) -> None:
        error: Exception | None = None
        try:
            self._work()
        except Exception as exc:
            error = exc
        self._loop.submit(lambda: self._finished(self, error))

    def _work(self) -> None:
        raise NotImplementedError


class WriteTransfer(Transfer):
    """Host to guest."""

    _request: m.WriteFile

    def __init__(
        self,
        loop: Loop,
        request: m.WriteFile,
        identity: Identity,
        send: Callable[[Message], None],
        finished: Callable[[Transfer, Exception | None], None],
    ) -> None:
        super().__init__(loop, request, send, finished)
        self._identity = identity
        self._pieces: queue.SimpleQueue[tuple[list[memoryview], bool] | None] = queue.SimpleQueue()  # one window
        self._ring = Ring(m.FILE_WINDOW)
        self._window = ReceiveWindow(m.FILE_WINDOW)

    def feed(self, message: m.Data) -> None:
        """Raises RemoteProtocolError when the host sends more than its window."""
        self._window.received(len(message.data))
        if not message.data and not message.flags & m.LAST:
            return  # costs no credit, so it must not be queued
        self._pieces.put((self._ring.put(message.data), bool(message.flags & m.LAST)))

    def cancel(self) -> None:
        super().cancel()
        self._pieces.put(None)

    def _work(self) -> None:
        request = self._request
        private = bool(request.flags & m.PRIVATE)
        if check_absolute(request.path).endswith("/"):
            raise RequestError("invalid", f"{request.path}: not the path of a file")
        directory = os.path.dirname(request.path)
        make_directories(directory, self._identity, private=private)
        if os.path.isdir(request.path) and not os.path.islink(request.path):
            raise RequestError("not_a_file", f"{request.path}: is a directory")
        temporary = f"{directory}/.vm0-{os.getpid()}-{id(self):x}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = self._copy(fd)
            if self._identity.uid is not None and self._identity.gid is not None:
                os.fchown(fd, self._identity.uid, self._identity.gid)
            os.fchmod(fd, 0o600 if private else request.mode & 0o7777)
            os.close(fd)
            fd = -1
            os.rename(temporary, request.path)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._loop.submit(lambda: self._send(m.Written(size)))

    def _copy(self, fd: int) -> int:
        size = unsaid = 0
        while True:
            piece = self._pieces.get()
            if piece is None or self._cancelled.is_set():
                raise RequestError("cancelled", "cancelled by the host")
            views, last = piece
            for view in views:
                size += len(view)
                unsaid += len(view)
                _write_all(fd, view)
            if last:
                return size
            if unsaid >= CREDIT_BYTES:  # waking the loop for each piece would cost more than writing it
                self._loop.submit(functools.partial(self._consumed, unsaid))
                unsaid = 0

    def _consumed(self, count: int) -> None:
        credit = self._window.consumed(count)
        if credit:
            self._send(m.Credit(m.FILE, credit))


class ReadTransfer(Transfer):
    """Guest to host."""

    _request: m.ReadFile

    def __init__(
        self,
        loop: Loop,
        request: m.ReadFile,
        send: Callable[[Message], None],
        finished: Callable[[Transfer, Exception | None], None],
    ) -> None:
        super().__init__(loop, request, send, finished)
        self._window = SendWindow(m.FILE_WINDOW)
        self._ring = Ring(m.FILE_WINDOW)  # what the host gave credit for again, it has received
        self._granted = threading.Condition()

    def credit(self, amount: int) -> None:
        with self._granted:
            self._window.grant(amount)
            self._granted.notify()

    def cancel(self) -> None:
        super().cancel()
        with self._granted:
            self._granted.notify()

    def _work(self) -> None:
        # Non-blocking, so that a FIFO cannot hold the thread; for a regular file it changes nothing.
        fd = os.open(check_absolute(self._request.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise RequestError("not_a_file", f"{self._request.path}: not a regular file")
            if found.st_size > self._request.limit:
                raise RequestError("too_large", f"{self._request.path}: {found.st_size} bytes, over the limit")
            self._send_soon(m.FileStat(*stat_fields(found, "")))
            left = self._request.limit
            while True:
                room = self._ring.room(min(m.MAX_CHUNK, left + 1, self._await_credit()))
                count = os.readv(fd, [room])
                left -= count
                with self._granted:
                    self._window.spend(count)
                if left < 0:
                    raise RequestError("too_large", f"{self._request.path}: grew over the limit while it was read")
                self._send_soon(m.Data(0 if count else m.LAST, self._ring.advance(count)))
                if not count:
                    return
        finally:
            os.close(fd)

    def _await_credit(self) -> int:
        with self._granted:
            while not self._window.available and not self._cancelled.is_set():
                self._granted.wait()  # ends by credit, by cancel, or by the end of the link, which cancels
            if self._cancelled.is_set():
                raise RequestError("cancelled", "cancelled by the host")
            return self._window.available

    def _send_soon(self, message: Message) -> None:
        self._loop.submit(lambda: self._send(message))


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def make_directories(path: str, identity: Identity, *, private: bool) -> None:
    """Make what is missing of `path`, owned by `identity`; with `private` 0700, and no symbolic link on the way."""
    current = ""
    for part in path.split("/")[1:]:
        if not part:
            continue
        current += f"/{part}"
        try:
            os.mkdir(current, 0o700 if private else 0o755)
            if identity.uid is not None and identity.gid is not None:
                os.chown(current, identity.uid, identity.gid, follow_symlinks=False)
        except FileExistsError:
            if private and os.path.islink(current):
                raise RequestError("invalid", f"{current}: is a symbolic link, refused for a private file") from None


def stat_fields(found: os.stat_result, target: str) -> tuple[int, int, int, int, int, int, str]:
    """kind, mode, uid, gid, size, mtime_ns, target: as *file stat* and *entries* carry them."""
    if stat.S_ISREG(found.st_mode):
        kind = m.KIND_FILE
    elif stat.S_ISDIR(found.st_mode):
        kind = m.KIND_DIRECTORY
    else:
        kind = m.KIND_SYMLINK if stat.S_ISLNK(found.st_mode) else m.KIND_OTHER
    mode = stat.S_IMODE(found.st_mode)
    return kind, mode, found.st_uid, found.st_gid, found.st_size, max(0, found.st_mtime_ns), target


class StatTransfer(Transfer):
    """One file's metadata: in a thread as well, because the path may lead into a file system that hangs."""

    _request: m.Stat

    def _work(self) -> None:
        path = check_absolute(self._request.path)
        found = os.stat(path, follow_symlinks=bool(self._request.follow))
        target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
        message = m.FileStat(*stat_fields(found, target))
        self._loop.submit(lambda: self._send(message))


class ListTransfer(Transfer):
    """A directory's names; bounded by its limit and by one listing in memory."""

    _request: m.List

    def _work(self) -> None:
        names = []
        with os.scandir(check_absolute(self._request.path)) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > self._request.limit:
                    raise RequestError("too_large", f"{self._request.path}: over {self._request.limit} names")
        rows: list[tuple[str, int, int, int, int, int, int, str]] = []
        size = 0
        for row in self._rows(sorted(names)):
            rows.append(row)
            size += len(row[0]) + len(row[7]) + 40
            if len(rows) == ENTRIES_PER_MESSAGE or size > ENTRIES_BYTES:
                self._submit(0, rows)
                rows, size = [], 0
        self._submit(m.LAST, rows)

    def _rows(self, names: list[str]) -> Iterator[tuple[str, int, int, int, int, int, int, str]]:
        for name in names:
            if self._cancelled.is_set():
                raise RequestError("cancelled", "cancelled by the host")
            with contextlib.suppress(FileNotFoundError):  # removed while we looked
                path = f"{self._request.path}/{name}"
                found = os.lstat(path)
                yield name, *stat_fields(found, os.readlink(path) if stat.S_ISLNK(found.st_mode) else "")

    def _submit(self, flags: int, rows: list[tuple[str, int, int, int, int, int, int, str]]) -> None:
        message = m.Entries(flags, tuple(rows))
        self._loop.submit(lambda: self._send(message))
