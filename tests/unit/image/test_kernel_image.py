"""The kernel inside a kernel file: every compression, every way to be cut off, and bounds on what comes out."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import struct
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vm0.image import decompression, kernel_image
from vm0.image.decompression import decompressed
from vm0.image.errors import ImageError
from vm0.image.kernel_image import arm64_image, boot_kernels, bzimage_payload, elf_from_bzimage

ELF = b"\x7fELF" + os.urandom(100_000) + bytes(400_000) + b"the end"
ARM = bytes(56) + b"ARM\x64" + os.urandom(50_000)
PAYLOAD_OFFSET = 0x300


def lz4_legacy(data: bytes) -> bytes:
    """As `lz4 -l` writes: blocks of 8 MiB, each with the length of its compressed form, nothing at the end."""
    size = decompression.LZ4_LEGACY_BLOCK
    blocks = [lz4.block.compress(data[at : at + size], store_size=False) for at in range(0, len(data), size)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def zstd_stream(data: bytes) -> bytes:
    """Without the content's size in the frame, as the kernel's build makes it from a pipe."""
    return zstandard.ZstdCompressor(level=3, write_content_size=False).compress(data)


def xz_with_filter(data: bytes) -> bytes:
    """As the kernel's build: a filter for x86 code, and CRC32."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 3}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": xz_with_filter,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=3),
    "bzip2": bz2.compress,
    "lz4": lz4_legacy,
    "zstd": zstd_stream,
}


def bzimage(payload: bytes, *, size: int | None = None, sectors: int = 27, protocol: int = 0x20F) -> bytes:
    """What arch/x86/boot makes: set-up code, then the protected-mode part with the payload in it, then more."""
    if size is not None and not payload.startswith(b"\x1f\x8b"):
        payload += struct.pack("<I", size)
    start = ((sectors or 4) + 1) * 512
    image = bytearray(start)
    image[0x1F1] = sectors
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, PAYLOAD_OFFSET, len(payload))
    return bytes(image) + bytes(PAYLOAD_OFFSET) + payload + b"code that decompresses"


def zboot(payload: bytes) -> bytes:
    header = bytearray(64)
    header[:8] = b"MZ\0\0zimg"
    struct.pack_into("<II", header, 8, 64, len(payload))
    return bytes(header) + payload + b"code that decompresses"


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("sectors", [0, 1, 27, 63])
def test_an_elf_file_from_a_bzimage(name: str, sectors: int) -> None:
    assert elf_from_bzimage(bzimage(COMPRESSIONS[name](ELF), size=len(ELF), sectors=sectors)) == ELF


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_blocks_larger_than_one(name: str) -> None:
    """A real kernel is larger than the buffers of its decompressors."""
    kernel = ELF * 40
    assert elf_from_bzimage(bzimage(COMPRESSIONS[name](kernel), size=len(kernel))) == kernel


def test_a_plain_elf_file_stays_as_it_is() -> None:
    assert elf_from_bzimage(ELF) == ELF


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_damaged_payload_is_an_error(name: str) -> None:
    compressed = COMPRESSIONS[name](ELF)
    cut = bzimage(compressed[: len(compressed) // 2], size=len(ELF))
    with pytest.raises(ImageError, match=f"{name} data" if name != "gzip" else "the kernel"):  # its size is cut off too
        elf_from_bzimage(cut)


@pytest.mark.parametrize("name", [name for name in COMPRESSIONS if name != "gzip"])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_size_that_does_not_match_is_an_error(name: str, wrong: int) -> None:
    with pytest.raises(ImageError, match=r"instead of|more than|damaged"):
        elf_from_bzimage(bzimage(COMPRESSIONS[name](ELF), size=len(ELF) + wrong))


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_what_comes_out_is_bounded(name: str) -> None:
    """A small file that says nothing of its size, or a false one, does not fill the memory."""
    bomb = COMPRESSIONS[name](bytes(30 * 1024 * 1024))
    for size in (0, 1024 * 1024):
        with pytest.raises(ImageError, match="more than 1048576"):
            decompressed(bomb, what="it", size=size, most=1024 * 1024)


def test_a_size_beyond_the_limit_is_refused_before_anything_is_decompressed() -> None:
    with pytest.raises(ImageError, match="more than"):
        elf_from_bzimage(bzimage(zstd_stream(ELF), size=kernel_image.MAX_KERNEL_BYTES + 1))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "boot header is missing"),
        (b"MZ" + bytes(4000), "boot header is missing"),
        (bzimage(zstd_stream(ELF), size=len(ELF), protocol=0x207), "2.07 is too old"),
        (bzimage(b"lzo!" + bytes(100), size=1), "not known (it begins with 6c 7a 6f 21"),
        (bzimage(gzip.compress(b"no kernel", mtime=0)), "not an ELF file"),
        (bzimage(b""), "cut off"),
    ],
)
def test_what_is_no_kernel_is_named(image: bytes, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        elf_from_bzimage(image)
    assert said in str(caught.value)


def test_a_file_that_ends_early_is_named() -> None:
    image = bzimage(zstd_stream(ELF), size=len(ELF))
    for length in (0x200, 0x260, 28 * 512, len(image) - 30):
        with pytest.raises(ImageError, match=r"missing|cut off"):
            elf_from_bzimage(image[:length])


@given(st.binary(max_size=2000), st.integers(0, 0x400), st.integers(0, 2000))
def test_no_bytes_make_another_error(data: bytes, offset: int, length: int) -> None:
    image = bytearray(bzimage(data))
    struct.pack_into("<II", image, 0x248, offset, length)
    for read in (elf_from_bzimage, arm64_image):
        for one in (bytes(image), data, zboot(data)):
            with contextlib.suppress(ImageError):
                read(one)


def test_the_payload_is_without_the_size_behind_it() -> None:
    assert bzimage_payload(bzimage(b"abcdefgh", size=77)) == (b"abcdefgh", 77)
    packed = gzip.compress(ELF, mtime=0)
    assert bzimage_payload(bzimage(packed, size=len(ELF))) == (packed, len(ELF))


@pytest.mark.parametrize(
    "wrapped",
    [
        ARM,
        gzip.compress(ARM, mtime=0),
        zboot(gzip.compress(ARM, mtime=0)),
        zboot(zstd_stream(ARM) + struct.pack("<I", len(ARM))),
        zboot(xz_with_filter(ARM) + struct.pack("<I", len(ARM))),
    ],
    ids=["plain", "gzip", "zboot-gzip", "zboot-zstd", "zboot-xz"],
)
def test_an_arm64_image_however_it_is_wrapped(wrapped: bytes) -> None:
    assert arm64_image(wrapped) == ARM


@pytest.mark.parametrize(
    "image", [b"", ELF, gzip.compress(ELF, mtime=0), zboot(b""), zboot(gzip.compress(ARM, mtime=0))[:200]]
)
def test_what_is_no_arm64_kernel_is_named(image: bytes) -> None:
    with pytest.raises(ImageError):
        arm64_image(image)


def test_what_is_booted() -> None:
    """QEMU takes a bzImage, and for arm64 an Image or a gzip of one; all the others get the uncompressed kernel."""
    image, packed = bzimage(zstd_stream(ELF), size=len(ELF)), gzip.compress(ARM, mtime=0)
    assert boot_kernels(image, elf=True) == (image, ELF)
    assert boot_kernels(ARM, elf=False) == (ARM, ARM)
    assert boot_kernels(packed, elf=False) == (packed, ARM)
    assert boot_kernels(zboot(packed), elf=False) == (ARM, ARM)
