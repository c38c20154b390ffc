"""Unpack an archive that nobody trusts, into a folder that may hold files already.

1. Everything is unpacked into a fresh private folder inside the target. Only what this archive brings is in there, so
   nothing planted earlier can be in the way, and if anything fails the folder is removed: the target is as before.
2. The stream is read to its end, so that the checksum was right before anything is kept.
3. The tree is moved into the target by renames. 4. Symbolic links are made last, in the target, and only those that
   cannot lead out of it; since all steps go through O_NOFOLLOW, no member could have gone through one anyway.

A member that is refused costs a line in the report. A limit or damage ends the extraction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
import struct
from collections.abc import Iterator

from vm0.archive import headers, tree
from vm0.archive.entries import STAGING_PREFIX, Cause, Skipped, link_problem, path_problem, printable
from vm0.archive.errors import ArchiveError, ArchiveReason
from vm0.archive.members import ByteSource, Gunzip, Limits, Member, TarReader
from vm0.archive.tree import FolderCursor, Occupied, Owner

MAX_REPORTED = 100  # lines of a report; the rest is only counted, so that an archive cannot fill memory or logs
MAX_LINK_HOPS = 40  # the kernel's own limit
CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK_RECORD = struct.Struct("<HH")


@dataclasses.dataclass(slots=True)
class Report:
    """What was made, and the first hundred members that were refused; `skipped_count` counts all of them."""

    files: int = 0
    links: int = 0
    bytes: int = 0
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    skipped_count: int = 0

    def refuse(self, name: str, reason: str, cause: Cause) -> None:
        self.skipped_count += 1
        if len(self.skipped) < MAX_REPORTED:
            self.skipped.append(Skipped(printable(name), reason, cause))


def extract(
    stream: ByteSource,
    target: str | os.PathLike[str],
    limits: Limits | None = None,
    owner: Owner | None = None,
) -> Report:
    """Unpack the `tar.gz` from `stream` into the existing folder `target`. All or nothing, up to the final renames.

    Files get mode 0644 or 0755, folders 0755, and `owner` (only root may give files away) or the caller.

    :raises ArchiveError: damaged, truncated or over a limit.
    :raises SourceError: `stream.read` raised.
    :raises OSError: the target's file system failed (full, read-only, not a folder).
    """
    root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # only the target itself may be a link
    try:
        with _staging(root_fd) as staging_fd:
            os.mkdir("tree", 0o700, dir_fd=staging_fd)
            with tree.opened_folder("tree", staging_fd) as tree_fd, _LinkSpool(staging_fd) as spool:
                report = Report()
                unpacking = _Unpacking(tree_fd, spool, report, limits or Limits(), owner)
                unpacking.run(stream)
                tree.merge(tree_fd, root_fd, lambda name, why: report.refuse(name, why, Cause.CONFLICT))
                _make_links(root_fd, os.path.realpath(target), spool, report, owner)
        return report
    finally:
        os.close(root_fd)


class _Unpacking:
    """The members of one archive, into one private folder."""

    def __init__(self, tree_fd: int, spool: _LinkSpool, report: Report, limits: Limits, owner: Owner | None) -> None:
        self._tree_fd, self._spool, self._report, self._limits, self._owner = tree_fd, spool, report, limits, owner

    def run(self, stream: ByteSource) -> None:
        reader = TarReader(Gunzip(stream, self._limits))
        count = 0
        with FolderCursor(self._tree_fd, self._owner) as cursor:
            while (member := reader.next_member()) is not None:
                count += 1
                if count > self._limits.entries:
                    raise ArchiveError(
                        ArchiveReason.LIMIT,
                        f"the archive has more than {self._limits.entries} entries",
                        hint="store fewer files",
                    )
                self._member(member, reader, cursor)
        if reader.drain():
            self._report.refuse("", "there is data after the end of the archive", Cause.TRAILING)

    def _member(self, member: Member, reader: TarReader, cursor: FolderCursor) -> None:
        path = member_path(member)
        if path is None:
            return
        problem = path_problem(path)
        if problem is not None:
            self._report.refuse(path, problem, Cause.NAME)
            return
        *folder, name = path.split("/")
        try:
            if member.sparse or member.type not in _HANDLED_TYPES:
                what = headers.TYPE_NAMES.get(member.type, "sparse file" if member.sparse else "unknown type")
                self._report.refuse(path, f"a {what} is not unpacked", Cause.SPECIAL)
            elif member.type == headers.FOLDER:
                cursor.move_to((*folder, name), make=True)
            elif member.type == headers.SYMLINK:
                self._spool.add(path, member.link)
            elif member.type == headers.HARD_LINK:
                self._hard_link(path, member, cursor)
            else:
                self._file(name, member, reader, cursor.move_to(tuple(folder), make=True))
        except Occupied as exc:
            self._report.refuse(path, str(exc), Cause.CONFLICT)

    def _file(self, name: str, member: Member, reader: TarReader, folder_fd: int) -> None:
        try:
            fd = os.open(name, CREATE_FLAGS, 0o600, dir_fd=folder_fd)
        except FileExistsError:
            _clear_name(name, folder_fd)
            fd = os.open(name, CREATE_FLAGS, 0o600, dir_fd=folder_fd)
        try:
            while data := reader.read_data():
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            tree.settle(fd, tree.EXECUTABLE_MODE if member.executable else tree.FILE_MODE, self._owner)
        finally:
            os.close(fd)
        self._report.files += 1
        self._report.bytes += member.size

    def _hard_link(self, path: str, member: Member, cursor: FolderCursor) -> None:
        """Only to a regular file that this archive brought before; everything else is a try to reach out."""
        source = _decoded(member.link).removeprefix("./")
        problem = path_problem(source)
        if problem is not None:
            self._report.refuse(path, f"a hard link to {printable(source)!r}: {problem}", Cause.LINK)
            return
        *source_folder, source_name = source.split("/")
        with FolderCursor(self._tree_fd) as source_cursor:
            try:
                source_fd = source_cursor.move_to(tuple(source_folder))
            except (FileNotFoundError, Occupied):
                found = None
            else:
                found = tree.lstat_at(source_name, source_fd)
                if found is not None and stat.S_ISREG(found.st_mode):
                    self._link_twice(source_name, source_fd, found, path, cursor)
                    return
        self._report.refuse(path, f"a hard link to {printable(source)!r}, not a file before it", Cause.LINK)

    def _link_twice(
        self, source_name: str, source_fd: int, found: os.stat_result, path: str, cursor: FolderCursor
    ) -> None:
        *folder, name = path.split("/")
        folder_fd = cursor.move_to(tuple(folder), make=True)
        existing = tree.lstat_at(name, folder_fd)
        if existing is not None and os.path.samestat(existing, found):
            return  # a link to itself, or the same link twice
        _clear_name(name, folder_fd)
        try:
            os.link(source_name, name, src_dir_fd=source_fd, dst_dir_fd=folder_fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            self._report.refuse(path, f"the file system makes no hard link: {exc.strerror}", Cause.LINK)
            return
        self._report.files += 1


_HANDLED_TYPES = headers.REGULAR_TYPES | {headers.FOLDER, headers.SYMLINK, headers.HARD_LINK}


class _LinkSpool:
    """Links wait for the end in a file: 400,000 of them, 8 KiB each, would not fit the memory limit."""

    def __init__(self, staging_fd: int) -> None:
        fd = os.open("links", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=staging_fd)
        self._file = os.fdopen(fd, "w+b")

    def __enter__(self) -> _LinkSpool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def add(self, path: str, link: bytes) -> None:
        name = path.encode()
        link = link[:0xFFFF]  # longer than any path anyway; judged, and refused, when its turn comes
        self._file.write(_LINK_RECORD.pack(len(name), len(link)) + name + link)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self._file.seek(0)
        while record := self._file.read(_LINK_RECORD.size):
            name_size, link_size = _LINK_RECORD.unpack(record)
            yield self._file.read(name_size).decode(), _decoded(self._file.read(link_size))


def _make_links(root_fd: int, root: str, spool: _LinkSpool, report: Report, owner: Owner | None) -> None:
    with FolderCursor(root_fd, owner) as cursor:
        for path, text in spool:
            *folder, name = path.split("/")
            inside = text
            if text.startswith("/"):  # absolute is fine if it names this very folder
                if not text.startswith(f"{root}/"):
                    report.refuse(path, f"the link leads to {printable(text)!r}, out of the folder", Cause.LINK)
                    continue
                inside = "../" * len(folder) + text[len(root) + 1 :]
            problem = link_problem(tuple(folder), inside)
            if problem is None and not _stays_inside(root_fd, root, folder, inside):
                problem = "the link leads out of the folder, through a link that was there before"
            if problem is not None:
                report.refuse(path, problem, Cause.LINK)
                continue
            try:
                folder_fd = cursor.move_to(tuple(folder), make=True)
                _clear_name(name, folder_fd)
            except Occupied as exc:
                report.refuse(path, str(exc), Cause.CONFLICT)
                continue
            os.symlink(os.fsencode(text), os.fsencode(name), dir_fd=folder_fd)
            if owner is not None:
                os.chown(name, *owner, dir_fd=folder_fd, follow_symlinks=False)
            report.links += 1


def _stays_inside(root_fd: int, root: str, folder: list[str], text: str) -> bool:
    """Follow `text` from `folder` by hand, over the links that exist, as the kernel would.

    Not `os.path.realpath`: where a path grows too long it falls back to guessing (CVE-2025-4517); here that is a no.
    """
    here = list(folder)  # always real folders
    todo = text.split("/")[::-1]
    hops = 0
    while todo:
        name = todo.pop()
        if name == "..":
            if not here:
                return False
            here.pop()
        elif name not in ("", "."):
            try:
                link = os.readlink("/".join([*here, name]), dir_fd=root_fd)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.EINVAL, errno.ENOTDIR):  # EINVAL: not a link
                    return False
                here.append(name)
                continue
            hops += 1
            if hops > MAX_LINK_HOPS:
                return True  # a loop: the kernel gives up here too, so it leads nowhere
            if link.startswith("/"):
                if link != root and not link.startswith(f"{root}/"):
                    return False
                here, link = [], link[len(root) :]
            todo += link.split("/")[::-1]
    return True


def _clear_name(name: str, folder_fd: int) -> None:
    """Later members replace earlier ones of the same kind; a folder is never replaced."""
    existing = tree.lstat_at(name, folder_fd)
    if existing is None:
        return
    if stat.S_ISDIR(existing.st_mode):
        raise Occupied("a folder of this name is in the way")
    os.unlink(name, dir_fd=folder_fd)


def member_path(member: Member) -> str | None:
    """The member's name without `./` in front and, for folders, `/` behind. None: the root itself."""
    path = _decoded(member.name)
    if member.type == headers.FOLDER:
        path = path.rstrip("/") or path
        if path == ".":
            return None
    while path.startswith("./"):
        path = path[2:]
    return path


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _staging(root_fd: int) -> Iterator[int]:
    """A private folder in the target (so that renames need no copy), removed whatever happens."""
    name = STAGING_PREFIX + os.urandom(8).hex()
    os.mkdir(name, 0o700, dir_fd=root_fd)
    try:
        with tree.opened_folder(name, root_fd) as staging_fd:
            yield staging_fd
    finally:
        tree.remove_at(name, True, root_fd)
