"""The machine: memory that is really mapped, and a state that belongs to it.

All that the guest knows is in its memory, as JSON in the first page, so it is there after a restore exactly if the
memory came along. The saved state holds no more than a machine's devices would: which machine, which memory, and, where
that is part of the migration, the memory's content.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib

from tests.support.fake_qemu.arguments import Arguments, UsageError, descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAGIC = b"fake-qemu state 1\n"
GUEST_BYTES = 64 * 1024  # of the memory that the guest uses: its JSON, and a pattern behind it
JSON_BYTES = 4096
MIB = 1024 * 1024


class MigrationError(Exception):
    """a state that cannot be loaded"""


class Machine:
    """`status` is QEMU's run state: inmigrate, running, paused, postmigrate."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.shared = True
        self._ram = self._mapped()
        self.has_balloon = arguments.device("virtio-balloon-pci") is not None
        self.status = "inmigrate" if arguments.incoming else "running"
        self.starts_when_loaded = False
        self.guest: dict[str, Any] = {}
        if not arguments.incoming:
            self.guest = {"ram_id": os.urandom(16).hex()}
            self._ram[JSON_BYTES:GUEST_BYTES] = os.urandom(GUEST_BYTES - JSON_BYTES)
            self.keep()

    def _mapped(self) -> mmap.mmap:
        backend = self.arguments.one("-object")
        size = int(self.arguments.texts["-m"].removesuffix("M")) * MIB
        if (
            backend["size"] != self.arguments.texts["-m"]
            or self.arguments.one("-machine")["memory-backend"] != backend["id"]
        ):
            raise UsageError("the machine's memory is not its memory backend")
        self.shared = backend["share"] == "on"
        descriptor(backend["mem-path"])
        fd = os.open(backend["mem-path"], os.O_RDWR | os.O_CLOEXEC)  # as QEMU does, however it is mapped
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise UsageError(f"backing store size {found:#x} does not match 'size' option {size:#x}")
            how = mmap.MAP_SHARED if self.shared else mmap.MAP_PRIVATE
            return mmap.mmap(fd, size, flags=how, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)

    def keep(self) -> None:
        """Write what the guest knows into its memory."""
        text = json.dumps(self.guest).encode()
        if len(text) >= JSON_BYTES:
            raise ValueError(f"the guest knows {len(text)} bytes, its page has {JSON_BYTES}")
        self._ram[:JSON_BYTES] = text.ljust(JSON_BYTES, b"\0")

    def saved(self, ignore_shared: bool) -> bytes:
        """The state; with the memory unless that is shared and to be ignored."""
        ram = b"" if ignore_shared and self.shared else self._ram[:GUEST_BYTES]
        header = {
            "machine": self.arguments.machine(),
            "ignore_shared": ignore_shared,
            "ram_id": self.guest["ram_id"],
            "ram_bytes": len(ram),
            "crc": zlib.crc32(ram),
            "status": self.status,
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + ram

    def load(self, state: bytes, ignore_shared: bool) -> None:
        """Raises MigrationError for what was not saved by this machine, or not of the memory that is mapped."""
        if not state.startswith(MAGIC):
            raise MigrationError("Not a migration stream")
        line, newline, ram = state.removeprefix(MAGIC).partition(b"\n")
        try:
            header = json.loads(line)
        except ValueError:
            header = {}
        if not newline or not header or len(ram) != header["ram_bytes"] or zlib.crc32(ram) != header["crc"]:
            raise MigrationError("load of migration failed: Input/output error")
        if header["machine"] != self.arguments.machine():
            raise MigrationError(f"Machine is {self.arguments.machine()}, but received {header['machine']}")
        if header["ignore_shared"] != ignore_shared:
            raise MigrationError(
                f"Capability x-ignore-shared is {ignore_shared}, but received capability is {header['ignore_shared']}"
            )
        if ram:
            self._ram[: len(ram)] = ram
        try:
            self.guest = json.loads(self._ram[:JSON_BYTES].rstrip(b"\0"))
        except ValueError:
            raise MigrationError("there is no guest in the memory that is mapped") from None
        if self.guest["ram_id"] != header["ram_id"]:
            raise MigrationError("the state is of other memory than what is mapped")
        self.status = "running" if header["status"] == "running" or self.starts_when_loaded else "paused"
