"""The verbs of a plan, and carrying it out."""

from __future__ import annotations

import errno
import os
import resource
import time

from vm0.guest_common import names, network
from vm0.guest_init import system_calls
from vm0.guest_init.plan import memory_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vm0.guest_init.plan import Step

LOOK_AGAIN_S = 0.01  # for a device of which nothing tells us that it is there
FLAGS = {
    "nosuid": system_calls.MS_NOSUID,
    "nodev": system_calls.MS_NODEV,
    "noexec": system_calls.MS_NOEXEC,
    "noatime": system_calls.MS_NOATIME,
    "ro": system_calls.MS_RDONLY,
}


class StepError(Exception):
    """a step without which there is no guest failed"""


def carry_out(steps: Iterable[Step], warn: Callable[[str], None]) -> None:
    """In order. Raises StepError at the first failure of a needed step; what was done before stays."""
    for step in steps:
        try:
            VERBS[step.verb](*step.arguments)
        except (OSError, ValueError) as exc:
            if step.needed:
                raise StepError(f"{step.name}: {exc}") from exc
            warn(f"{step.name}: {exc}")


def mount(source: str, target: str, fstype: str, options: str) -> None:
    flags, data = 0, []
    for option in options.split(","):
        if option in FLAGS:
            flags |= FLAGS[option]
        else:
            data.append(option)
    try:
        system_calls.mount(source, target, fstype, flags, ",".join(data))
    except OSError as exc:
        if exc.errno != errno.EBUSY:  # the same file system is there already
            raise


def folder(path: str, mode: int) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        if os.stat(path).st_mode & 0o7777 == mode:
            return
    os.chmod(path, mode)  # the umask has no say


def link(target: str, path: str) -> None:
    try:
        os.symlink(target, path)
    except FileExistsError:
        pass


def write(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(value))


def wait(path: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not os.path.exists(path):
        if time.monotonic() >= deadline:
            raise FileNotFoundError(errno.ENOENT, f"not there after {limit_s:g} s", path)
        time.sleep(LOOK_AGAIN_S)


def pivot(new_root: str) -> None:
    """The old root is put on top of the new one, and detached from there with all that is mounted below it."""
    os.chdir(new_root)
    system_calls.pivot_root(".", ".")
    system_calls.umount(".", system_calls.MNT_DETACH)
    os.chdir("/")


def delegate(group: str, *controllers: str) -> None:
    """To the groups below `group`, as far as the kernel has them."""
    with open(f"{group}/cgroup.controllers", encoding="ascii") as file:
        offered = file.read().split()
    write(f"{group}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers if name in offered))
    missing = [name for name in controllers if name not in offered]
    if missing:
        raise OSError(errno.ENOTSUP, f"no controllers {', '.join(missing)}", group)


def limit_memory(group: str) -> None:
    with open("/proc/meminfo", encoding="ascii") as file:
        limit = memory_limit(file.read())
    write(f"{group}/memory.max", limit)


def open_files(hard: int) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))


def new_machine_id() -> None:
    names.set_machine_id(os.urandom(16).hex())


def ask_before_reset() -> None:
    system_calls.reboot(system_calls.RB_DISABLE_CAD)


VERBS: dict[str, Callable[..., None]] = {
    "mount": mount,
    "folder": folder,
    "link": link,
    "write": write,
    "wait": wait,
    "pivot": pivot,
    "delegate": delegate,
    "limit_memory": limit_memory,
    "settle": names.settle,
    "hostname": names.set_hostname,
    "hosts": names.set_hosts,
    "nameserver": names.set_nameserver,
    "machine_id": new_machine_id,
    "up": network.bring_up,
    "address": network.set_address,
    "route": network.set_default_route,
    "open_files": open_files,
    "ask_before_reset": ask_before_reset,
}
