"""Archives byte by byte, with every field free to lie, and fingerprints of folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pathlib
import stat

from vm0.archive.extract import Report, extract
from vm0.archive.members import Limits

END = bytes(1024)


def member(
    name: str | bytes,
    data: bytes = b"",
    *,
    kind: bytes = b"0",
    link: str | bytes = b"",
    mode: int = 0o644,
    size: bytes | int | None = None,
    mtime: bytes = b"00000000000\0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    tail: bytes = b"",
    uid: int = 0,
) -> bytes:
    """One ustar member; `size` as bytes goes into the header as it is."""
    name = name.encode() if isinstance(name, str) else name
    link = link.encode() if isinstance(link, str) else link
    number = len(data) if size is None else size
    field = number if isinstance(number, bytes) else b"%011o\0" % number
    head = name[:100].ljust(100, b"\0") + b"%07o\0%07o\0%07o\0" % (mode, uid, 0) + field + mtime
    head += b" " * 8 + kind + link[:100].ljust(100, b"\0") + magic
    head = head.ljust(345, b"\0") + prefix.ljust(155, b"\0")
    block = bytearray(head.ljust(512, b"\0"))
    block[482 : 482 + len(tail)] = tail
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block) + data + bytes(-len(data) % 512)


def record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return b"%d" % length + body


def pax(kind: bytes = b"x", **fields: str | bytes) -> bytes:
    """An extension header; `path="…"`, `linkpath="…"`, `size="…"`; `__` in a key stands for a dot."""
    encoded = {key: value.encode() if isinstance(value, str) else value for key, value in fields.items()}
    return member("pax", b"".join(record(key.replace("__", "."), value) for key, value in encoded.items()), kind=kind)


def archive(*members: bytes, end: bytes = END) -> bytes:
    return gzip.compress(b"".join(members) + end, mtime=0)


def unpack(data: bytes, target: pathlib.Path, limits: Limits | None = None) -> Report:
    return extract(io.BytesIO(data), target, limits)


def fingerprint(root: pathlib.Path) -> dict[str, str]:
    """{path: kind, mode and content} of everything below, and of the root; follows nothing."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what = f"link {os.readlink(path)!r}"
        elif stat.S_ISREG(status.st_mode):
            what = f"{status.st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            what = f"{status.st_mode:o}"
        found[str(path.relative_to(root))] = what
    return found


def contents(root: pathlib.Path) -> dict[str, str | bytes]:
    """{path: bytes of a file, `-> target` of a link, `/` for a folder}."""
    found: dict[str, str | bytes] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = "/" if path.is_dir() else path.read_bytes()
    return found
