"""A `tar.gz` as a stream of members, in bounded memory, whatever the archive claims.

`Gunzip` counts every byte on both sides of the decompressor; `TarReader` gives one member after the other and its data
in pieces. Nothing is allocated by a size that the archive states.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Protocol

from vm0.archive import headers
from vm0.archive.errors import ArchiveError, ArchiveReason, SourceError

CHUNK_BYTES = 64 * 1024
MAX_EXTENSION_BYTES = 256 * 1024  # a pax or GNU extension header: two paths and some attributes
GZIP_WBITS = 31  # zlib: expect a gzip header and check its CRC and length


class ByteSource(Protocol):
    """Up to `size` bytes, b"" at the end: files and HTTP responses alike."""

    def read(self, size: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may ask for; the first one that is exceeded ends the extraction."""

    total_bytes: int = 8 * 1024**3  # of the unpacked stream, headers included, and of the packed one
    entries: int = 400_000  # twice the files of a version, because folders count too
    ratio: int = 200  # unpacked to packed; deflate reaches 1030, source code 3 to 20
    ratio_after_bytes: int = 10 * 1024 * 1024  # small archives of zeros are harmless


class Gunzip:
    """Decompresses a stream of one or more gzip members. Reads ahead at most one chunk."""

    def __init__(self, source: ByteSource, limits: Limits) -> None:
        self._source, self._limits = source, limits
        self._inflater = zlib.decompressobj(GZIP_WBITS)
        self._ready, self._offset = b"", 0  # unpacked and not yet taken
        self._carried = b""  # packed and not yet given to the decompressor
        self._packed_bytes = self._unpacked_bytes = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """At least one and at most `size` bytes; b"" at the end of the last member."""
        if self._offset == len(self._ready):
            self._ready, self._offset = self._inflate(), 0
        data = self._ready[self._offset : self._offset + size]
        self._offset += len(data)
        return data

    def read_exactly(self, size: int) -> bytes:
        """:raises ArchiveError: the stream ends before. For sizes that are already known to be small."""
        data = self.read(size)
        while len(data) < size:
            more = self.read(size - len(data))
            if not more:
                raise ArchiveError(ArchiveReason.TRUNCATED, "the archive ends in the middle of an entry")
            data += more
        return data

    def skip(self, size: int) -> None:
        while size:
            data = self.read(min(size, CHUNK_BYTES))
            if not data:
                raise ArchiveError(ArchiveReason.TRUNCATED, "the archive ends in the middle of an entry")
            size -= len(data)

    def expect(self, size: int) -> None:
        """Refuse at once what would exceed the limit anyway."""
        if self._unpacked_bytes - len(self._ready) + self._offset + size > self._limits.total_bytes:
            raise self._over(f"is more than {self._limits.total_bytes} bytes unpacked")

    def _inflate(self) -> bytes:
        while not self._ended:
            if self._inflater.eof:
                self._start_next_member()
                continue
            packed = self._inflater.unconsumed_tail or self._carried or self._read_source()
            self._carried = b""
            try:
                data = self._inflater.decompress(packed, CHUNK_BYTES)
            except zlib.error as exc:
                raise ArchiveError(ArchiveReason.CORRUPT, f"not a gzip stream, or a damaged one ({exc})") from exc
            if data:
                self._count(len(data))
                return data
            if not packed and not self._inflater.eof:
                raise ArchiveError(ArchiveReason.TRUNCATED, "the archive ends in the middle of its gzip stream")
        return b""

    def _start_next_member(self) -> None:
        """Tapes pad with zeros, `cat a.gz b.gz` is legal, and anything else after the end is damage."""
        rest = self._inflater.unused_data.lstrip(b"\0")
        while not rest:
            packed = self._read_source()
            if not packed:
                self._ended = True
                return
            rest = packed.lstrip(b"\0")
        if rest[0] != 0x1F:
            raise ArchiveError(ArchiveReason.CORRUPT, "damaged archive: data after the end of the gzip stream")
        self._inflater, self._carried = zlib.decompressobj(GZIP_WBITS), rest

    def _read_source(self) -> bytes:
        try:
            packed = self._source.read(CHUNK_BYTES)
        except Exception as exc:  # whatever the source raises, it is the source that failed, not the archive
            raise SourceError(f"reading the archive failed: {exc}") from exc
        self._packed_bytes += len(packed)
        if self._packed_bytes > self._limits.total_bytes:
            raise self._over(f"is more than {self._limits.total_bytes} bytes")
        return packed

    def _count(self, size: int) -> None:
        self._unpacked_bytes += size
        if self._unpacked_bytes > self._limits.total_bytes:
            raise self._over(f"is more than {self._limits.total_bytes} bytes unpacked")
        if self._unpacked_bytes > max(self._limits.ratio_after_bytes, self._limits.ratio * self._packed_bytes):
            raise self._over(f"expands more than {self._limits.ratio} times")

    @staticmethod
    def _over(what: str) -> ArchiveError:
        return ArchiveError(ArchiveReason.LIMIT, f"the archive {what}", hint="store fewer or smaller files")


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One member with its extension headers applied. Nothing about it is trustworthy."""

    name: bytes
    type: int
    size: int  # of the data that follows
    executable: bool
    link: bytes
    sparse: bool


class TarReader:
    """`next_member()`, then `read_data()` until b""; what is not read is skipped."""

    def __init__(self, stream: Gunzip) -> None:
        self._stream = stream
        self._left = 0  # bytes of the current member's data
        self._padding = 0

    def next_member(self) -> Member | None:
        """None at the end-of-archive marker. :raises ArchiveError: damaged, truncated or over a limit."""
        name = link = None
        pax: dict[str, bytes] = {}
        while True:
            header = self._next_header()
            if header is None:
                return None
            if header.type == headers.PAX:
                pax = headers.parse_pax(self._extension(header))
            elif header.type == headers.PAX_GLOBAL:
                if {"path", "linkpath", "size"} & headers.parse_pax(self._extension(header)).keys():
                    raise ArchiveError(
                        ArchiveReason.CORRUPT, "damaged archive: a global header that renames every entry"
                    )
            elif header.type == headers.GNU_LONG_NAME:
                name = self._extension(header).split(b"\0", 1)[0]
            elif header.type == headers.GNU_LONG_LINK:
                link = self._extension(header).split(b"\0", 1)[0]
            else:
                return self._member(header, name, link, pax)

    def read_data(self) -> bytes:
        data = self._stream.read(min(self._left, CHUNK_BYTES)) if self._left else b""
        if self._left and not data:
            raise ArchiveError(ArchiveReason.TRUNCATED, "the archive ends in the middle of a file")
        self._left -= len(data)
        return data

    def drain(self) -> bool:
        """Read to the end of the stream, which checks its CRC. True: there was more than padding."""
        found = False
        while data := self._stream.read(CHUNK_BYTES):
            found = found or bool(data.strip(b"\0"))
        return found

    def _next_header(self) -> headers.Header | None:
        self._stream.skip(self._left + self._padding)
        self._left = self._padding = 0
        block = self._stream.read(headers.BLOCK)
        if not block:
            raise ArchiveError(ArchiveReason.TRUNCATED, "the archive has no end marker: its end is missing")
        if len(block) < headers.BLOCK:
            block += self._stream.read_exactly(headers.BLOCK - len(block))
        return headers.parse_header(block) if block.strip(b"\0") else None

    def _extension(self, header: headers.Header) -> bytes:
        if header.size > MAX_EXTENSION_BYTES:
            raise ArchiveError(
                ArchiveReason.LIMIT, f"an extension header is {header.size} bytes; the limit is {MAX_EXTENSION_BYTES}"
            )
        data = self._stream.read_exactly(header.size)
        self._stream.skip(len(headers.padding(header.size)))
        return data

    def _member(self, header: headers.Header, name: bytes | None, link: bytes | None, pax: dict[str, bytes]) -> Member:
        extended = header.type == headers.GNU_SPARSE and header.extended
        while extended:
            extended = self._stream.read_exactly(headers.BLOCK)[504] != 0
        size = headers.pax_size(pax["size"]) if "size" in pax else header.size
        if header.type in headers.BODILESS_TYPES:
            size = 0
        self._stream.expect(size)
        self._left, self._padding = size, -size % headers.BLOCK
        return Member(
            name=pax.get("path", header.name if name is None else name),
            type=header.type,
            size=size,
            executable=bool(header.mode & 0o100),
            link=pax.get("linkpath", header.link if link is None else link),
            sparse=header.type == headers.GNU_SPARSE or any(key.startswith("GNU.sparse.") for key in pax),
        )
