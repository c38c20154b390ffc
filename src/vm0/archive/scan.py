"""List a folder: every regular file and link below it, with its hash. Follows no link, waits for no FIFO."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat

from vm0.archive import entries as rules
from vm0.archive.entries import Cause, Entry, EntryKind, Skipped, path_problem, printable
from vm0.archive.errors import ArchiveError, ArchiveReason
from vm0.archive.tree import FILE_FLAGS, FOLDER_FLAGS

HASH_CHUNK_BYTES = 256 * 1024
SPECIAL_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """Entries sorted by path, and what was left out. `.git` and `.vm0` are excluded, not reported."""

    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]


def scan(
    root: str | os.PathLike[str],
    *,
    max_file_bytes: int = rules.MAX_FILE_BYTES,
    max_entries: int = rules.MAX_ENTRIES,
) -> Scan:
    """Everything below `root` that can be part of a version.

    Whether something skipped matters is the caller's decision. What disappears while we look was never there.

    :raises OSError: `root` cannot be opened or is not a folder.
    :raises ArchiveError: more than `max_entries` entries.
    """
    walk = _Walk(max_file_bytes, max_entries)
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # only the root itself may be a link
    try:
        walk.folder(root_fd, "")
    finally:
        os.close(root_fd)
    by_path = sorted(walk.entries, key=lambda entry: entry.path)
    return Scan(tuple(by_path), tuple(sorted(walk.skipped, key=lambda item: item.name)))


def hash_file(fd: int, kind: EntryKind, max_bytes: int) -> tuple[str, int]:
    """Hash and size of an open file from its start, in bounded memory; stops one chunk after `max_bytes`."""
    digest = hashlib.sha256(rules.EXECUTABLE_MARK if kind is EntryKind.EXECUTABLE else b"")
    buffer = bytearray(HASH_CHUNK_BYTES)
    view = memoryview(buffer)
    size = 0
    while size <= max_bytes and (count := os.readv(fd, [buffer])):
        digest.update(view[:count])
        size += count
    return digest.hexdigest(), size


def hash_link(target: str) -> str:
    return hashlib.sha256(rules.SYMLINK_MARK + target.encode()).hexdigest()


def file_kind(mode: int) -> EntryKind:
    """The owner's execute bit decides; the other bits of the mode are not versioned."""
    return EntryKind.EXECUTABLE if mode & stat.S_IXUSR else EntryKind.FILE


class _Walk:
    def __init__(self, max_file_bytes: int, max_entries: int) -> None:
        self._max_file_bytes, self._max_entries = max_file_bytes, max_entries
        self.entries: list[Entry] = []
        self.skipped: list[Skipped] = []

    def folder(self, folder_fd: int, prefix: str) -> None:
        """Depth-first; `path_problem` bounds the depth, and with it the open descriptors."""
        with os.scandir(folder_fd) as listing:
            for item in listing:
                if item.name in rules.EXCLUDED_NAMES or item.name.startswith(rules.STAGING_PREFIX):
                    continue
                self._item(item, folder_fd, prefix + item.name)

    def _item(self, item: os.DirEntry[str], folder_fd: int, path: str) -> None:
        problem = path_problem(path)
        if problem is not None:
            self._skip(path, problem, Cause.NAME)
            return
        try:
            if item.is_dir(follow_symlinks=False):
                inner_fd = os.open(item.name, FOLDER_FLAGS, dir_fd=folder_fd)
                try:
                    self.folder(inner_fd, path + "/")
                finally:
                    os.close(inner_fd)
            elif item.is_symlink():
                self._link(os.readlink(item.name, dir_fd=folder_fd), path)
            else:
                self._file(item.name, folder_fd, path)
        except FileNotFoundError:
            return  # removed since we listed the folder
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # our own shortage; the file may be fine
            self._skip(path, f"cannot be read: {exc.strerror}", Cause.UNREADABLE)

    def _link(self, target: str, path: str) -> None:
        try:
            self._add(Entry(path, hash_link(target), len(target.encode()), EntryKind.SYMLINK))
        except UnicodeEncodeError:
            self._skip(path, "the link's target is not valid UTF-8", Cause.NAME)

    def _file(self, name: str, folder_fd: int, path: str) -> None:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if self._is_special(found, path):
            return  # not even opened: opening a device can have effects
        fd = os.open(name, FILE_FLAGS, dir_fd=folder_fd)
        try:
            found = os.fstat(fd)
            if self._is_special(found, path):
                return
            kind = file_kind(found.st_mode)
            digest, size = (
                hash_file(fd, kind, self._max_file_bytes)
                if found.st_size <= self._max_file_bytes
                else ("", found.st_size)
            )
        finally:
            os.close(fd)
        if size > self._max_file_bytes:
            self._skip(path, f"is {size} bytes; the limit for one file is {self._max_file_bytes}", Cause.TOO_LARGE)
        else:
            self._add(Entry(path, digest, size, kind))

    def _is_special(self, found: os.stat_result, path: str) -> bool:
        if stat.S_ISREG(found.st_mode):
            return False
        what = SPECIAL_KINDS.get(stat.S_IFMT(found.st_mode), "neither file, folder nor link")
        self._skip(path, f"is {what}, which cannot be stored", Cause.SPECIAL)
        return True

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._check_count()

    def _skip(self, path: str, reason: str, cause: Cause) -> None:
        self.skipped.append(Skipped(printable(path), reason, cause))
        self._check_count()

    def _check_count(self) -> None:
        if len(self.entries) + len(self.skipped) > self._max_entries:
            raise ArchiveError(
                ArchiveReason.LIMIT,
                f"the folder holds more than {self._max_entries} files",
                hint="delete build output and caches, or choose a smaller folder",
            )
