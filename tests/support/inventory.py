"""What a test could leave behind: list it before and after, compare.

`take_inventory` only reads (/proc, directories, the running loop). Every entry has a key that stays the same while the
thing lives (pid and start time, descriptor target, path) and a text for people; `diff` compares the keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PROC = pathlib.Path("/proc")
CGROUPS = pathlib.Path("/sys/fs/cgroup")
TCP_LISTEN = "0A"  # include/net/tcp_states.h
UNIX_ACCEPTS = 0x10000  # __SO_ACCEPTCON, include/uapi/linux/net.h

Entries = Mapping[str, str]  # stable key -> text


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    processes: Entries = field(default_factory=dict)
    descriptors: Entries = field(default_factory=dict)
    sockets: Entries = field(default_factory=dict)
    files: Entries = field(default_factory=dict)
    cgroups: Entries = field(default_factory=dict)
    threads: Entries = field(default_factory=dict)
    tasks: Entries = field(default_factory=dict)


KINDS = tuple(item.name for item in dataclasses.fields(Inventory))


@dataclass(frozen=True, slots=True)
class Difference:
    """False when there is none; its text has one line per thing, `+` for new and `-` for gone."""

    lines: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines) or "no difference"


def diff(before: Inventory, after: Inventory, kinds: Iterable[str] = KINDS) -> Difference:
    lines: list[str] = []
    for kind in kinds:
        old, new = getattr(before, kind), getattr(after, kind)
        lines += [f"+ {kind}: {new[key]}" for key in sorted(new.keys() - old.keys())]
        lines += [f"- {kind}: {old[key]}" for key in sorted(old.keys() - new.keys())]
    return Difference(tuple(lines))


def take_inventory(
    paths: Iterable[pathlib.Path] = (), *, marker: str = "", cgroup_root: pathlib.Path = CGROUPS
) -> Inventory:
    """List everything now. Files and Unix sockets count below `paths`; processes that mention `marker` (not empty) in
    their command line or environment count as well as the children of this process, for daemons leave their parents.
    """
    folders = [pathlib.Path(path).resolve() for path in paths]
    processes = _processes(marker)
    inodes = _socket_inodes([os.getpid(), *processes])
    return Inventory(
        processes={f"{pid}@{process.start}": process.text for pid, process in processes.items()},
        descriptors=_descriptors(),
        sockets=_unix_sockets(folders) | _tcp_listeners(inodes),
        files={str(path): str(path) for folder in folders for path in folder.rglob("*")},
        cgroups={str(path): str(path) for path in _folders_named(cgroup_root, "vm0")},
        threads={f"{t.ident}": f"{t.name}{' (daemon)' if t.daemon else ''}" for t in threading.enumerate()},
        tasks=_tasks(),
    )


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    start: str  # ticks since boot: with the pid it names a process for good
    text: str


def _read_process(pid: int) -> _Process | None:
    try:
        # the name in parentheses may contain anything, so count from its end: state, ppid, ..., starttime
        name, _, rest = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None  # it has exited
    fields = rest.split()
    zombie = " (zombie)" if fields[0] == "Z" else ""
    return _Process(int(fields[1]), fields[19], f"pid {pid}{zombie}: {command or name.partition('(')[2]}")


def _processes(marker: str) -> dict[int, _Process]:
    """Descendants of this process, and what mentions the marker; never this process or its ancestors."""
    everything: dict[int, _Process] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit() and (process := _read_process(int(entry))):
            everything[int(entry)] = process
    ancestors, pid = {os.getpid()}, os.getpid()
    while (process := everything.get(pid)) and process.parent:
        pid = process.parent
        ancestors.add(pid)
    ours = {os.getpid()}
    while more := {pid for pid, process in everything.items() if process.parent in ours} - ours:
        ours |= more
    if marker:
        ours |= {pid for pid in everything if _mentions(pid, marker.encode())}
    return {pid: everything[pid] for pid in sorted(ours - ancestors) if pid in everything}


def _mentions(pid: int, marker: bytes) -> bool:
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):  # exited, or another user's
            if marker in (PROC / str(pid) / name).read_bytes():
                return True
    return False


def _descriptor_targets(pid: int) -> dict[int, str]:
    targets: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir(PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):  # closed since, as is the one that read the directory
                targets[int(entry)] = os.readlink(PROC / str(pid) / "fd" / entry)
    return targets


def _descriptors() -> dict[str, str]:
    """Open descriptors of this process by target: a number may change hands, what it leads to may not."""
    seen: Counter[str] = Counter()
    entries = {}
    for number, target in sorted(_descriptor_targets(os.getpid()).items()):
        seen[target] += 1
        entries[f"{target} #{seen[target]}"] = f"fd {number} -> {target}"
    return entries


def _socket_inodes(pids: Iterable[int]) -> set[str]:
    targets = (target for pid in pids for target in _descriptor_targets(pid).values())
    return {target[len("socket:[") : -1] for target in targets if target.startswith("socket:[")}


def _unix_sockets(folders: list[pathlib.Path]) -> dict[str, str]:
    """Unix sockets bound below the folders (in this network namespace)."""
    entries = {}
    for line in (PROC / "net" / "unix").read_text(errors="replace").splitlines()[1:]:
        columns = line.split(maxsplit=7)  # Num RefCount Protocol Flags Type St Inode Path
        if len(columns) == 8 and any(pathlib.Path(columns[7]).is_relative_to(folder) for folder in folders):
            listening = "listening" if int(columns[3], 16) & UNIX_ACCEPTS else "connected"
            entries[f"unix {columns[6]}"] = f"unix {columns[7]} ({listening})"
    return entries


def _tcp_listeners(inodes: set[str]) -> dict[str, str]:
    """Listening TCP sockets that one of our processes holds (others on this machine are not our business)."""
    entries = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == TCP_LISTEN and columns[9] in inodes:
                    entries[f"{name} {columns[9]}"] = (
                        f"{name} port {int(columns[1].rpartition(':')[2], 16)} (listening)"
                    )
    return entries


def _folders_named(root: pathlib.Path, prefix: str) -> list[pathlib.Path]:
    return [
        pathlib.Path(parent, name) for parent, names, _ in os.walk(root) for name in names if name.startswith(prefix)
    ]


def _tasks() -> dict[str, str]:
    """Tasks of the running loop, without the one that asks; none when no loop runs here."""
    try:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
    except RuntimeError:
        return {}
    return {f"{task.get_name()} {id(task)}": f"{task.get_name()}: {task.get_coro()!r}" for task in tasks}
