"""Which kernel modules to load, and in which order, from the modules' own dependency data. Pure.

depmod(8) writes those data: `modules.dep` (what a module needs, the last to load first), `modules.softdep` (what it
works better with), `modules.alias` (other names); the kernel's build writes `modules.builtin` (what needs no loading).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from vm0.image.errors import ImageError

# A virtual machine of ours cannot work without these.
NEEDED = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "squashfs",
    "overlay",
    "ext4",
)
# Loaded too, but a kernel or a processor without them is no failure.
WANTED = (
    "virtio_rng",
    "virtio_balloon",
    "vsock",
    "vmw_vsock_virtio_transport",
    "crc32c",  # an alias: the processor's instruction if it has one
)
# Not loaded; in the guest's root for `modprobe`.
LOADABLE = ("vsock_loopback",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One to load. `file` is relative to the directory of the kernel's modules; `needed`: without it nothing works."""

    name: str
    file: str
    needed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleIndex:
    """The dependency data of one kernel. Names have underscores, as in /proc/modules."""

    files: dict[str, str]
    needs: dict[str, tuple[str, ...]]  # in order of loading
    before: dict[str, tuple[str, ...]] = field(default_factory=dict)  # soft: may be missing
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    builtin: frozenset[str] = frozenset()


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`."""
    return re.sub(r"\.ko(\.\w+)?$", "", path.rpartition("/")[2]).replace("-", "_")


def parse_index(*, dep: str, softdep: str = "", alias: str = "", builtin: str = "") -> ModuleIndex:
    """From the text of the files. Aliases with wildcards name devices, not modules, and are left out."""
    files: dict[str, str] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for line in dep.splitlines():
        path, _, rest = line.partition(":")
        if path:
            files[module_name(path)] = path
            # the last one is needed by those before it, so it is loaded first
            needs[module_name(path)] = tuple(module_name(need) for need in reversed(rest.split()))
    before: dict[str, tuple[str, ...]] = {}
    for line in softdep.splitlines():
        words = line.split("post:")[0].split()
        if len(words) > 2 and words[0] == "softdep":
            name = words[1].replace("-", "_")
            before[name] = before.get(name, ()) + tuple(word for word in words[2:] if word != "pre:")
    aliases: dict[str, tuple[str, ...]] = {}
    for line in alias.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "alias" and not set(words[1]) & set("*?["):
            name = words[1].replace("-", "_")
            aliases[name] = (*aliases.get(name, ()), words[2])
    return ModuleIndex(
        files=files,
        needs=needs,
        before=before,
        aliases=aliases,
        builtin=frozenset(module_name(line) for line in builtin.split()),
    )


def load_order(index: ModuleIndex, needed: Iterable[str] = NEEDED, wanted: Iterable[str] = WANTED) -> list[Module]:
    """What to load, each after what it needs; nothing that is built in. Raises ImageError for a needed one that the
    kernel does not have at all."""
    order: dict[str, bool] = {}

    def visit(name: str, must: bool, path: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in path or (name in order and (order[name] or not must)):
            return
        if name in index.builtin:
            return
        if name not in index.files:
            if must and name not in index.aliases:
                raise ImageError(
                    f"the kernel has no module {name}", hint="choose a suite whose cloud kernel has virtio drivers"
                )
            for module in index.aliases.get(name, ()):
                visit(module, must, (*path, name))
            return
        for soft in index.before.get(name, ()):
            visit(soft, False, (*path, name))
        for need in index.needs.get(name, ()):
            visit(need, must, (*path, name))
        order[name] = must or order.get(name, False)

    for name in needed:
        visit(name, True, ())
    for name in wanted:
        visit(name, False, ())
    return [Module(name=name, file=index.files[name], needed=must) for name, must in order.items()]
