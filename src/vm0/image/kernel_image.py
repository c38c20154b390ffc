"""The uncompressed kernel inside a distribution's kernel file, whatever it is compressed with. Pure, on bytes.

x86: a bzImage holds a boot sector, set-up code and, where its header says (Documentation/arch/x86/boot), a payload: the
compressed ELF file, followed by four bytes with the uncompressed size (gzip has them by itself).
arm64: an `Image` is not an ELF file and is loaded as it is; it may be wrapped in gzip or in an EFI program that
decompresses it (`zboot`, drivers/firmware/efi/libstub).
"""

from __future__ import annotations

import struct

from vm0.image.decompression import GZIP, decompressed
from vm0.image.errors import ImageError

MAX_KERNEL_BYTES = 256 * 1024 * 1024  # Debian's are below 80 MiB
KERNEL = "the kernel"
ELF = b"\x7fELF"
BOOT_FLAG = 0xAA55  # at 0x1fe
HEADER_MAGIC = b"HdrS"  # at 0x202
PAYLOAD_PROTOCOL = 0x0208  # the first boot protocol with a payload's place in it
SECTOR = 512
DEFAULT_SETUP_SECTORS = 4  # what 0 means
ARM64_MAGIC = b"ARM\x64"  # at 56 of an Image
ARM64_MAGIC_AT = 56
ZBOOT_MAGIC = b"zimg"  # at 4, after "MZ"


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
    kernel = decompressed(payload, what=KERNEL, size=size, most=MAX_KERNEL_BYTES)
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
        image = decompressed(payload[:-4] if known else payload, what=KERNEL, size=known, most=MAX_KERNEL_BYTES)
    elif image.startswith(GZIP):
        image = decompressed(image, what=KERNEL, most=MAX_KERNEL_BYTES)
    if image[ARM64_MAGIC_AT : ARM64_MAGIC_AT + 4] != ARM64_MAGIC:
        raise ImageError("this is no arm64 kernel: the magic number of an Image is missing")
    return image
