"""The command line, as strictly as QEMU reads it: an option or a key that is not in the table is an error.

What is not in the table would be something that the real one is told and this one ignores.
"""

from __future__ import annotations

# option -> {kind: its keys}. The kind is the bare word that stands first; "" for options that start with a key. A key
# with "=" has that one value and no other.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "-name": {"vm0": ("process",)},
    "-machine": {"pc": ("memory-backend", "dump-guest-core=off")},
    "-accel": {"tcg": ("tb-size",), "kvm": ()},
    "-cpu": {"max": (), "host": ()},
    "-object": {"memory-backend-file": ("id", "size", "mem-path", "share")},
    "-display": {"none": ()},
    "-sandbox": {
        "on": ("obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny"),
    },
    "-add-fd": {"": ("fd", "set")},
    "-blockdev": {
        "": ("driver=file", "node-name", "filename", "locking=off", "read-only", "cache.no-flush", "discard"),
    },
    "-chardev": {"socket": ("id", "fd")},
    "-mon": {"": ("chardev", "mode=control")},
    "-netdev": {"tap": ("id", "fd")},
    "-device": {
        "virtio-blk-pci": ("drive",),
        "virtio-serial-pci": ("max_ports",),
        "virtserialport": ("chardev", "name"),
        "virtio-rng-pci": (),
        "virtio-balloon-pci": ("id", "deflate-on-oom"),
        "virtio-net-pci": ("netdev", "mac", "romfile=", "guest_announce=off"),
    },
}
TEXTS = ("-smp", "-m", "-kernel", "-initrd", "-append", "-serial", "-incoming")
FLAGS = ("-nodefaults", "-no-user-config", "-no-reboot")
WITHOUT = ("-nodefaults", "-no-user-config", "-no-reboot", "-display")  # every VM of ours is without these
DIFFERENT = ("fd", "mem-path", "share")  # between two machines that are equal
REPEATED = ("-add-fd", "-blockdev", "-chardev", "-device")


class UsageError(Exception):
    """a command line that QEMU would not take"""


class Arguments:
    """What one machine is told. `found` has the option's keys, with the kind as key "", in the order they came."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.found: dict[str, list[dict[str, str]]] = {}
        self.texts: dict[str, str] = {}
        words = iter(argv)
        for option in words:
            if option in FLAGS:
                self._once(option, option in self.texts)
                self.texts[option] = ""
                continue
            if option not in OPTIONS and option not in TEXTS:
                raise UsageError(f"{option}: invalid option")
            value = next(words, None)
            if value is None:
                raise UsageError(f"{option}: requires an argument")
            if option in TEXTS:
                self._once(option, option in self.texts)
                self.texts[option] = value
            else:
                self._once(option, option in self.found and option not in REPEATED)
                self.found.setdefault(option, []).append(_keys(option, value))
        if missing := [option for option in WITHOUT if option not in self.texts and option not in self.found]:
            raise UsageError(f"{missing[0]}: missing, so there would be default devices")

    @staticmethod
    def _once(option: str, again: bool) -> None:
        if again:
            raise UsageError(f"{option}: given twice")

    def one(self, option: str) -> dict[str, str]:
        """The only use of an option, {} when it is not there."""
        return self.found.get(option, [{}])[0]

    def device(self, kind: str) -> dict[str, str] | None:
        return next((found for found in self.found.get("-device", ()) if found[""] == kind), None)

    def chardev(self, name: str) -> int | None:
        """The descriptor of a character device."""
        return next((int(found["fd"]) for found in self.found.get("-chardev", ()) if found["id"] == name), None)

    def drives(self) -> list[tuple[int, bool]]:
        """Descriptor of each drive that a device has, and whether it is read-only."""
        sets = {f"/dev/fdset/{found['set']}": int(found["fd"]) for found in self.found.get("-add-fd", ())}
        nodes = {found["node-name"]: found for found in self.found.get("-blockdev", ())}
        result = []
        for device in self.found.get("-device", ()):
            if device[""] == "virtio-blk-pci":
                node = nodes.get(device["drive"])
                if node is None or node["filename"] not in sets:
                    raise UsageError(f"-device virtio-blk-pci: no drive {device['drive']}")
                result.append((sets[node["filename"]], node.get("read-only") == "on"))
        return result

    @property
    def kernel_parameters(self) -> dict[str, str]:
        words = self.texts.get("-append", "").split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    @property
    def incoming(self) -> bool:
        if self.texts.get("-incoming", "defer") != "defer":
            raise UsageError(f"-incoming {self.texts['-incoming']}: only defer is played")
        return "-incoming" in self.texts

    def machine(self) -> str:
        """What must be equal on both ends of a migration: all that makes the machine, but for descriptors, how the
        memory is mapped, and the parameters of a kernel that runs already."""
        kept: list[tuple[str, dict[str, str]]] = []
        for option, uses in sorted(self.found.items()):
            kept += [(option, {k: v for k, v in keys.items() if k not in DIFFERENT}) for keys in uses]
        return repr((kept, sorted((k, v) for k, v in self.texts.items() if k in ("-smp", "-m", "-serial"))))


def _keys(option: str, value: str) -> dict[str, str]:
    kinds = OPTIONS[option]
    words = value.split(",")
    kind = "" if "" in kinds else words.pop(0)
    if kind not in kinds:
        raise UsageError(f"{option} {value}: {kind!r} is not a valid kind")
    fixed = dict(key.split("=", 1) for key in kinds[kind] if "=" in key)
    known = {key.partition("=")[0] for key in kinds[kind]}
    found = {"": kind}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            raise UsageError(f"{option} {value}: Property '{key}' not found")
        if text != fixed.get(key, text) or key in found:
            raise UsageError(f"{option} {value}: Parameter '{key}' does not accept value '{text}'")
        found[key] = text
    return found


def descriptor(path: str) -> int:
    """The N of /proc/self/fd/N."""
    prefix = "/proc/self/fd/"
    if not path.startswith(prefix):
        raise UsageError(f"{path}: a VMM without rights could not open that")
    return int(path.removeprefix(prefix))
