"""The 512-byte headers of tar: parse hostile ones, write ours. Pure.

Read: v7, ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU. Written: ustar, and pax where a field does not fit.
Not `tarfile`: it seeks its way on a header's word (negative sizes loop for ever, CVE-2025-8194), reads extension
headers of any size into memory, and the filters that make it safe are not in Debian 12's Python.
"""

from __future__ import annotations

import dataclasses

from vm0.archive.entries import EntryKind
from vm0.archive.errors import ArchiveError, ArchiveReason

BLOCK = 512
END = bytes(2 * BLOCK)

REGULAR_TYPES = frozenset(b"0\x007")  # 7: contiguous file, stored like a regular one
HARD_LINK, SYMLINK, FOLDER = ord("1"), ord("2"), ord("5")
PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE = map(ord, "xgLKS")
BODILESS_TYPES = frozenset(b"123456")  # links, devices, folders, FIFOs: no data, whatever the size field says
TYPE_NAMES = {ord("3"): "character device", ord("4"): "block device", ord("6"): "FIFO", GNU_SPARSE: "sparse file"}

_USTAR_NAME_BYTES = 100
_USTAR_SIZE_MAX = 8**11 - 1
_CHECKSUM = slice(148, 156)


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """One header as it stands; names are bytes, not yet judged."""

    name: bytes
    type: int
    size: int
    mode: int
    link: bytes
    extended: bool = False  # GNU sparse only: another header block follows


def parse_header(block: bytes) -> Header:
    """:raises ArchiveError: a wrong checksum or a number that is none."""
    stored = _number(block[_CHECKSUM], "checksum")
    blanked = block[:148] + b" " * 8 + block[156:]
    # Historic tars summed signed characters.
    if stored != sum(blanked) and stored != sum(byte - 256 if byte > 127 else byte for byte in blanked):
        raise ArchiveError(ArchiveReason.CORRUPT, "not a tar archive, or a damaged one: wrong header checksum")
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = _text(block[345:500]) + b"/" + name
    kind = block[156]
    if kind == 0 and name.endswith(b"/"):  # v7 had no type for folders
        kind = FOLDER
    return Header(
        name=name,
        type=kind,
        size=_number(block[124:136], "size"),
        mode=_number(block[100:108], "mode", lenient=True),
        link=_text(block[157:257]),
        extended=block[482] != 0,
    )


def parse_pax(data: bytes) -> dict[str, bytes]:
    """The `length key=value\\n` records of an extension header. :raises ArchiveError: anything else."""
    found: dict[str, bytes] = {}
    start = 0
    while start < len(data):
        if data[start] == 0 and not data[start:].strip(b"\0"):
            break  # some writers pad inside the size
        blank = data.find(b" ", start, start + 20)
        digits = data[start:blank] if blank > start else b""
        if not digits.isdigit():
            raise _bad_pax()
        end = start + int(digits)
        record = data[blank + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end <= blank or end > len(data) or record[-1:] != b"\n" or not key or not equals:
            raise _bad_pax()
        found[key.decode("utf-8", "replace")] = value
        start = end
    return found


def pax_size(value: bytes) -> int:
    """:raises ArchiveError: not a plain decimal number that fits 63 bits."""
    if not value.isdigit() or len(value) > 19 or int(value) >= 2**63:
        raise ArchiveError(ArchiveReason.CORRUPT, "damaged archive: a pax header's size is not a number")
    return int(value)


def entry_blocks(path: str, kind: EntryKind, size: int, link: str = "") -> bytes:
    """Everything before the data of one entry; the same bytes on every machine, at any time, for any owner."""
    name = f"./{path}".encode()
    target = link.encode()
    size = 0 if kind is EntryKind.SYMLINK else size
    extras = {}
    if not _fits_ustar(name):
        extras["path"] = name
    if not _fits_ustar(target):
        extras["linkpath"] = target
    if size > _USTAR_SIZE_MAX:
        extras["size"] = str(size).encode()
    mode = 0o777 if kind is EntryKind.SYMLINK else 0o755 if kind is EntryKind.EXECUTABLE else 0o644
    flag = b"2" if kind is EntryKind.SYMLINK else b"0"
    blocks = b""
    if extras:
        records = b"".join(_pax_record(key, value) for key, value in sorted(extras.items()))
        blocks += _header(b"././@PaxHeader", b"x", len(records), 0o644, b"") + records + padding(len(records))
    return blocks + _header(_ascii(name), flag, 0 if "size" in extras else size, mode, _ascii(target))


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _number(field: bytes, what: str, lenient: bool = False) -> int:
    if field[0] & 0x80:  # GNU base 256; 0xff starts a negative number
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
    else:
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if not digits:
            return 0
        if not digits.strip(b"01234567"):
            return int(digits, 8)
    if lenient:
        return 0
    raise ArchiveError(ArchiveReason.CORRUPT, f"damaged archive: a header's {what} is not a number, or negative")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _bad_pax() -> ArchiveError:
    return ArchiveError(ArchiveReason.CORRUPT, "damaged archive: a pax header is malformed")


def _fits_ustar(value: bytes) -> bool:
    return len(value) <= _USTAR_NAME_BYTES and value.isascii()


def _ascii(value: bytes) -> bytes:
    """What a reader without pax support sees."""
    return value.decode("utf-8", "replace").encode("ascii", "replace")[:_USTAR_NAME_BYTES]


def _pax_record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):  # the length counts its own digits
        length = len(body) + len(str(length))
    return str(length).encode() + body


def _header(name: bytes, flag: bytes, size: int, mode: int, link: bytes) -> bytes:
    head = name.ljust(100, b"\0")
    head += b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, 0)  # mode, uid, gid, size, mtime
    head += b" " * 8 + flag + link.ljust(100, b"\0") + b"ustar\x0000"
    block = head.ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
