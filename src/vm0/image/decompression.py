"""Decompression by what the data say they are, with a bound on what comes out. Pure, on bytes.

The formats are those in which Linux distributions ship kernels and their modules.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

from vm0.image.errors import ImageError

GZIP = b"\x1f\x8b\x08"
LZ4_LEGACY_BLOCK = 8 * 1024 * 1024  # each block of the legacy frame but the last decompresses to this


def decompressed(data: bytes, *, what: str, most: int, size: int = 0) -> bytes:
    """`data`, by their magic number. They come to `size` bytes, if that is known, and never to more than `most`.

    `what` names them in errors. Raises ImageError.
    """
    limit = size or most
    if limit > most:
        raise ImageError(f"{what} says that it has {size} bytes, more than {most}")
    known = next((row for row in FORMATS if data.startswith(row[0])), None)
    if known is None:
        raise ImageError(f"{what} is compressed in a way that is not known (it begins with {data[:6].hex(' ')})")
    _, name, decompress = known
    try:
        result = decompress(data, limit + 1)
    except Exception as exc:  # each library has errors of its own, and all mean the same
        raise ImageError(f"{what}: {name} data are damaged: {exc}") from exc
    if len(result) > limit or (size and len(result) != size):
        more = "more than " if len(result) > limit else f"{len(result)} bytes instead of "
        raise ImageError(f"{what}: {name} data gave {more}{limit}")
    return result


# Each of these stops at `limit` bytes, which is more than there may be; what is cut off before raises an error.


def _gzip(data: bytes, limit: int) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    result = decoder.decompress(data, limit)
    if not decoder.eof and len(result) < limit:
        raise ValueError("not complete")
    return result


def _xz(data: bytes, limit: int) -> bytes:
    return _stream(lzma.LZMADecompressor(), data, limit)


def _bzip2(data: bytes, limit: int) -> bytes:
    return _stream(bz2.BZ2Decompressor(), data, limit)


def _stream(decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor, data: bytes, limit: int) -> bytes:
    result = decoder.decompress(data, limit)
    # the decoders return early when they hold output back: ask until the end or the limit
    while not decoder.eof and not decoder.needs_input and len(result) < limit:
        result += decoder.decompress(b"", limit - len(result))
    if not decoder.eof and len(result) < limit:
        raise ValueError("not complete")
    return result


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    # The kernel's frames do not say their size, so the decoder works as a stream.
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data, read_across_frames=False)
    return decoder.read(limit)


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    import lz4.block

    result = bytearray()
    position = 4  # after the magic number
    while position + 4 <= len(data) and len(result) < limit:
        (length,) = struct.unpack_from("<I", data, position)
        block = data[position + 4 : position + 4 + length]
        if len(block) != length:
            raise ValueError("not complete")
        result += lz4.block.decompress(block, uncompressed_size=LZ4_LEGACY_BLOCK)
        position += 4 + length
    return bytes(result[:limit])


FORMATS: tuple[tuple[bytes, str, Callable[[bytes, int], bytes]], ...] = (
    (GZIP, "gzip", _gzip),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\x00\x00", "lzma", _xz),
    (b"\x02\x21\x4c\x18", "lz4", _lz4_legacy),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
