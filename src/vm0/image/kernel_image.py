"""The uncompressed kernel inside a distribution's kernel file, whatever it is compressed with. Pure, on bytes.

x86: a bzImage holds a boot sector, set-up code and, where its header says (Documentation/arch/x86/boot), a payload: the
compressed ELF file, followed by four bytes with the uncompressed size (gzip has them by itself).
arm64: an `Image` is not an ELF file and is loaded as it is; it may be wrapped in gzip or in an EFI program that
decompresses it (`zboot`, drivers/firmware/efi/libstub).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

from vm0.image.errors import ImageError

MAX_KERNEL_BYTES = 256 * 1024 * 1024  # Debian's are below 80 MiB
ELF = b"\x7fELF"
GZIP = b"\x1f\x8b\x08"
BOOT_FLAG = 0xAA55  # at 0x1fe
HEADER_MAGIC = b"HdrS"  # at 0x202
PAYLOAD_PROTOCOL = 0x0208  # the first boot protocol with a payload's place in it
SECTOR = 512
DEFAULT_SETUP_SECTORS = 4  # what 0 means
ARM64_MAGIC = b"ARM\x64"  # at 56 of an Image
ARM64_MAGIC_AT = 56
ZBOOT_MAGIC = b"zimg"  # at 4, after "MZ"
LZ4_LEGACY_BLOCK = 8 * 1024 * 1024  # each block of the legacy frame but the last decompresses to this


def boot_kernels(packed: bytes, *, elf: bool) -> tuple[bytes, bytes]:
    """(vmlinuz, vmlinux) from a distribution's kernel file: what QEMU boots, and the uncompressed one, an ELF file
    where the architecture has that, else an arm64 `Image`. Raises ImageError."""
    if elf:
        return packed, elf_from_bzimage(packed)
    plain = arm64_image(packed)
    return (packed if packed.startswith(GZIP) else plain), plain  # older QEMUs take no EFI zboot program


def elf_from_bzimage(image: bytes) -> bytes:
    """`vmlinux` from an x86 kernel file; a file that is an ELF already is returned as it is. Raises ImageError."""
    if image.startswith(ELF):
        return image
    payload, size = bzimage_payload(image)
    kernel = decompressed(payload, size)
    if not kernel.startswith(ELF):
        raise ImageError("the kernel's payload is not an ELF file")
    return kernel


def bzimage_payload(image: bytes) -> tuple[bytes, int]:
    """The compressed kernel, without the size behind it, and that size."""
    if (
        len(image) < 0x260
        or struct.unpack_from("<H", image, 0x1FE)[0] != BOOT_FLAG
        or image[0x202:0x206] != HEADER_MAGIC
    ):
        raise ImageError("this is no x86 kernel: the boot header is missing")
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < PAYLOAD_PROTOCOL:
        raise ImageError(f"this kernel's boot protocol {protocol >> 8}.{protocol & 0xFF:02} is too old")
    start = ((image[0x1F1] or DEFAULT_SETUP_SECTORS) + 1) * SECTOR
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[start + offset : start + offset + length]
    if len(payload) != length or length < 8:
        raise ImageError(f"the kernel is cut off: {len(payload)} of {length} bytes of its payload are there")
    (size,) = struct.unpack("<I", payload[-4:])
    # gzip's own trailer is the size; for the others the build appended it
    return (payload if payload.startswith(GZIP) else payload[:-4]), size


def arm64_image(image: bytes) -> bytes:
    """The plain `Image` in an arm64 kernel file: as it is, from gzip, or from an EFI zboot program."""
    if image[4:8] == ZBOOT_MAGIC and image.startswith(b"MZ"):
        offset, size = struct.unpack_from("<II", image, 8)
        payload = image[offset : offset + size]
        if len(payload) != size or size < 8:
            raise ImageError(f"the kernel is cut off: {len(payload)} of {size} bytes of its payload are there")
        # here too the build appends the size, except to gzip
        known = 0 if payload.startswith(GZIP) else struct.unpack("<I", payload[-4:])[0]
        image = decompressed(payload[:-4] if known else payload, known)
    elif image.startswith(GZIP):
        image = decompressed(image, 0)
    if image[ARM64_MAGIC_AT : ARM64_MAGIC_AT + 4] != ARM64_MAGIC:
        raise ImageError("this is no arm64 kernel: the magic number of an Image is missing")
    return image


def decompressed(data: bytes, size: int) -> bytes:
    """`data` by its magic number. `size` is what it must come to, 0 if nobody said. Raises ImageError."""
    if size > MAX_KERNEL_BYTES:
        raise ImageError(f"the kernel says that it has {size} bytes, more than {MAX_KERNEL_BYTES}")
    known = next((row for row in FORMATS if data.startswith(row[0])), None)
    if known is None:
        raise ImageError(f"the kernel is compressed in a way that is not known (it begins with {data[:6].hex(' ')})")
    _, name, decompress = known
    try:
        result = decompress(data, size or MAX_KERNEL_BYTES)
    except Exception as exc:  # each library has errors of its own, and all mean the same
        raise ImageError(f"the kernel's {name} data are damaged: {exc}") from exc
    if size and len(result) != size:
        raise ImageError(f"the kernel's {name} data gave {len(result)} bytes instead of {size}")
    return result


def _gzip(data: bytes, limit: int) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    result = decoder.decompress(data, limit)
    if not decoder.eof:
        raise ValueError("not complete, or larger than it says")
    return result


def _xz(data: bytes, limit: int) -> bytes:
    return _stream(lzma.LZMADecompressor(), data, limit)


def _bzip2(data: bytes, limit: int) -> bytes:
    return _stream(bz2.BZ2Decompressor(), data, limit)


def _stream(decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor, data: bytes, limit: int) -> bytes:
    parts = [decoder.decompress(data, limit)]
    # the decoders return early when they hold output back: ask until the end or the limit
    while not decoder.eof and not decoder.needs_input and sum(map(len, parts)) < limit:
        parts.append(decoder.decompress(b"", limit - sum(map(len, parts))))
    if not decoder.eof and sum(map(len, parts)) < limit:
        raise ValueError("not complete")
    return b"".join(parts)


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    # The kernel's frames do not say their size, so the decoder works as a stream.
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data, read_across_frames=False)
    return decoder.read(limit)


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    import lz4.block

    result = bytearray()
    position = 4  # after the magic number
    while position + 4 <= len(data) and len(result) <= limit:
        (length,) = struct.unpack_from("<I", data, position)
        block = data[position + 4 : position + 4 + length]
        if len(block) != length:
            raise ValueError("not complete")
        result += lz4.block.decompress(block, uncompressed_size=LZ4_LEGACY_BLOCK)
        position += 4 + length
    return bytes(result)


FORMATS: tuple[tuple[bytes, str, Callable[[bytes, int], bytes]], ...] = (
    (GZIP, "gzip", _gzip),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\x00\x00", "lzma", _xz),
    (b"\x02\x21\x4c\x18", "lz4", _lz4_legacy),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
