"""Everything that a command started, so that all of it can be signalled and killed.

With a cgroup v2 directory each command gets a child group: nothing it forks can leave it, and `cgroup.kill` ends all
of it at once. Without, it is the command's process group plus whatever descends from it by parent links; a process that
made its own session *and* lost its parent before escapes that, which is why a VM always has the cgroup.
"""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


HOME = "guest"  # the guest's own group below the root: a group with controllers has no processes of its own
OOM_SCORE = "/proc/self/oom_score_adj"


class Home:
    """What is the guest's own and not its commands': its cgroup, and that the kernel's memory killer spares it. A
    command inherits both at its fork, so the guest puts them down for that moment: no command ever runs with them."""

    def __init__(self, cgroup_root: str) -> None:
        self._group_fd = self._score_fd = -1
        if cgroup_root:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{cgroup_root}/{HOME}")
            self._group_fd = os.open(f"{cgroup_root}/{HOME}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._group_fd, b"0")
        with open(OOM_SCORE, "rb") as file:
            self._score = file.read()
        if self._score.startswith(b"-"):
            self._score_fd = os.open(OOM_SCORE, os.O_WRONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def left_for(self, group_fd: int) -> Iterator[None]:
        """Be in that group meanwhile, so that what is started is born there."""
        if group_fd < 0:
            yield
            return
        os.write(group_fd, b"0")
        try:
            yield
        finally:
            os.write(self._group_fd, b"0")

    @contextlib.contextmanager
    def unprotected(self) -> Iterator[None]:
        """Be to the memory killer what a command is."""
        if self._score_fd < 0:
            yield
            return
        os.write(self._score_fd, b"0")
        try:
            yield
        finally:
            os.write(self._score_fd, self._score)


class Containment:
    """One command's processes. Create before the fork; the child joins through `join_fd`, or is started while the
    guest has `left_for` it."""

    def __init__(self, cgroup_root: str, name: str, home: Home) -> None:
        self.home = home
        self._cgroup = f"{cgroup_root}/{name}" if cgroup_root else ""
        self.join_fd = -1
        self._leader = 0
        if self._cgroup:
            os.mkdir(self._cgroup)
            # Opened here, by the guest's own user, because the kernel checks the opener and the child has dropped root.
            try:
                self.join_fd = os.open(f"{self._cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                os.rmdir(self._cgroup)
                raise

    def joined(self, leader: int) -> None:
        """The child with this pid was started."""
        self._leader = leader
        if self.join_fd >= 0:
            os.close(self.join_fd)
            self.join_fd = -1

    def signal(self, number: int) -> None:
        """Send to all of it. Only while the leader is not reaped: after that its pid may be somebody else's."""
        if not self._leader:
            return
        for pid in self._members():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End all of it; with a cgroup at any time, else only while the leader is not reaped."""
        if self._cgroup:
            with contextlib.suppress(OSError), open(f"{self._cgroup}/cgroup.kill", "w", encoding="ascii") as file:
                file.write("1")
        elif self._leader:
            for pid in self._members():  # stop first, so that nothing forks between the look and the kill
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGSTOP)
            self.signal(signal.SIGKILL)

    def reaped(self) -> None:
        """The leader was waited for: never signal by its number again."""
        self._leader = 0

    def release(self) -> bool:
        """Remove the cgroup; False while something in it still lives (call again later)."""
        if self.join_fd >= 0:
            os.close(self.join_fd)
            self.join_fd = -1
        if self._cgroup:
            try:
                os.rmdir(self._cgroup)
            except FileNotFoundError:
                pass
            except OSError:
                return False
            self._cgroup = ""
        return True

    def _members(self) -> list[int]:
        """The leader first: a shell that sees its child die before it gets the signal exits with a code of its own."""
        if self._cgroup:
            try:
                with open(f"{self._cgroup}/cgroup.procs", encoding="ascii") as file:
                    return sorted((int(line) for line in file), key=lambda pid: pid != self._leader)
            except OSError:
                return []
        return descendants(self._leader, self._leader)


def descendants(root: int, group: int = 0) -> list[int]:
    """`root`, all that descend from it by parent links, and all of process group `group`; from one look at /proc.
    `root` comes first, and what descends from it after its parents."""
    children: dict[int, list[int]] = {}
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # ended while we looked
        children.setdefault(int(fields[1]), []).append(int(entry))
        if group and int(fields[2]) == group:
            found.append(int(entry))
    queue = [root, *found]
    seen: dict[int, None] = {}
    for pid in queue:  # which grows
        if pid not in seen:
            seen[pid] = None
            queue += children.get(pid, [])
    return list(seen)
