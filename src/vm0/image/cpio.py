"""Writes cpio archives in the format that the kernel unpacks as initramfs ("newc"). Pure: equal input, equal bytes.

Each entry: a header of 110 ASCII characters, the name with a final zero, then the content, both padded to four bytes
(Documentation/driver-api/early-userspace/buffer-format).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpioEntry:
    """`path` is relative; `mode` has the file type; `device` is (major, minor) of a device node."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> CpioEntry:
    return CpioEntry(path=path, mode=stat.S_IFDIR | mode)


def file(path: str, content: bytes, mode: int = 0o644) -> CpioEntry:
    return CpioEntry(path=path, mode=stat.S_IFREG | mode, content=content)


def symlink(path: str, target: str) -> CpioEntry:
    return CpioEntry(path=path, mode=stat.S_IFLNK | 0o777, content=target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> CpioEntry:
    return CpioEntry(path=path, mode=stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[CpioEntry]) -> bytes:
    """All owned by root, without times, in order of their paths, so that directories come before what is in them.

    Raises ValueError for a path that is there twice, absolute, or whose directory is missing.
    """
    ordered = sorted(entries, key=lambda entry: entry.path.split("/"))
    seen: set[str] = set()
    result = bytearray()
    for number, entry in enumerate(ordered, start=1):
        parent = entry.path.rpartition("/")[0]
        if entry.path in seen or entry.path.startswith("/") or (parent and parent not in seen):
            raise ValueError(f"{entry.path}: twice, absolute, or without its directory")
        seen.add(entry.path)
        result += _record(entry, number)
    return bytes(result + _record(CpioEntry(path=TRAILER, mode=0), 0))


def _record(entry: CpioEntry, number: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + "".join(f"{field:08x}" for field in fields).encode()
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
