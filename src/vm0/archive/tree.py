"""Folders by file descriptor: walk, merge and remove without ever following a link.

Every step is one name relative to an open folder with O_NOFOLLOW, so a link planted in a path, even while we work,
is an error instead of a way out. Folders are listed in batches, so one with a million names costs no memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that took a file's place must fail the type check, not wait for a writer.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOLDER_MODE, FILE_MODE, EXECUTABLE_MODE = 0o755, 0o644, 0o755
BATCH = 1024

Owner = tuple[int, int]  # uid, gid


class Occupied(Exception):
    """something that is not a folder, or is one, has the name already"""


class FolderCursor:
    """One open folder below a root that moves from path to path; neighbours share most of the way.

    The root descriptor stays the caller's. Folders on the way must not be removed while the cursor is in use.
    """

    def __init__(self, root_fd: int, owner: Owner | None = None) -> None:
        self._root_fd, self._owner = root_fd, owner
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> FolderCursor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave(0)

    def move_to(self, parts: tuple[str, ...], *, make: bool = False) -> int:
        """The open folder at `parts`; `make` creates what is missing.

        :raises Occupied: a component exists and is not a folder (a link is none).
        :raises FileNotFoundError: a component is missing and `make` is off.
        """
        shared = 0
        for (name, _), part in zip(self._open, parts, strict=False):
            if name != part:
                break
            shared += 1
        self._leave(shared)
        for part in parts[shared:]:
            self._open.append((part, self._enter(part, make)))
        return self._here()

    def _here(self) -> int:
        return self._open[-1][1] if self._open else self._root_fd

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def _enter(self, name: str, make: bool) -> int:
        parent_fd = self._here()
        try:
            return os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
        except NotADirectoryError:
            raise Occupied(f"{name!r} is in the way and is not a folder") from None
        except FileNotFoundError:
            if not make:
                raise
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        folder_fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
        try:
            settle(folder_fd, FOLDER_MODE, self._owner)
        except BaseException:
            os.close(folder_fd)
            raise
        return folder_fd


def settle(fd: int, mode: int, owner: Owner | None) -> None:
    """Give an open file or folder its final owner and mode, whatever the umask is."""
    if owner is not None:
        os.fchown(fd, *owner)
    os.fchmod(fd, mode)


def lstat_at(name: str, dir_fd: int) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return None


def remove_children(folder_fd: int) -> None:
    """Empty a folder, links and all, without leaving it or crossing into a link's target."""
    for name, is_folder in _batches(folder_fd):
        remove_at(name, is_folder, folder_fd)


def remove_at(name: str, is_folder: bool, dir_fd: int) -> None:
    if not is_folder:
        os.unlink(name, dir_fd=dir_fd)
        return
    with opened_folder(name, dir_fd) as folder_fd:
        remove_children(folder_fd)
    os.rmdir(name, dir_fd=dir_fd)


def merge(source_fd: int, target_fd: int, refuse: Callable[[str, str], None], prefix: str = "") -> None:
    """Move everything from one folder into another of the same file system; the source ends up empty.

    A file replaces a file or a link of the same name atomically; folders are merged. Where a file meets a folder, what
    was there stays, the newcomer is dropped and `refuse(path, reason)` is called.
    """
    for name, is_folder in _batches(source_fd):
        existing = lstat_at(name, target_fd)
        existing_is_folder = existing is not None and stat.S_ISDIR(existing.st_mode)
        if existing is None or not (is_folder or existing_is_folder):
            os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        elif is_folder and existing_is_folder:
            with opened_folder(name, source_fd) as inner_fd, opened_folder(name, target_fd) as outer_fd:
                merge(inner_fd, outer_fd, refuse, f"{prefix}{name}/")
            os.rmdir(name, dir_fd=source_fd)
        else:
            refuse(prefix + name, f"a {'folder' if existing_is_folder else 'file or link'} of this name is in the way")
            remove_at(name, is_folder, source_fd)


@contextlib.contextmanager
def opened_folder(name: str, dir_fd: int) -> Iterator[int]:
    folder_fd = os.open(name, FOLDER_FLAGS, dir_fd=dir_fd)
    try:
        yield folder_fd
    finally:
        os.close(folder_fd)


def _batches(folder_fd: int) -> Iterator[tuple[str, bool]]:
    """Every (name, is a folder) of a folder whose reader takes each name away before asking for the next."""
    while True:
        with os.scandir(folder_fd) as listing:
            batch = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in itertools.islice(listing, BATCH)]
        if not batch:
            return
        yield from batch
