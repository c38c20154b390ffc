"""What makes a booted kernel a guest: a list of named steps, each a verb of `machine.VERBS` with its arguments. Pure.

The root that the kernel or the initramfs mounted is read-only and becomes the lower layer of an overlay; the layer
above is the disk of this machine, or memory when there is none. Both are reachable through the overlay only: the old
root and all that is mounted below it are detached by the pivot.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_init.parameters import Parameters

DISK_WAIT_S = 5.0  # a driver that is built into the kernel may still look for its device
INTERFACE_WAIT_S = 2.0
INTERFACE = "eth0"
STAGE = "/mnt"  # of the old root; exists in every Debian
DISK, NEW_ROOT = f"{STAGE}/disk", f"{STAGE}/root"
CGROUPS = "/sys/fs/cgroup"
COMMANDS_GROUP = f"{CGROUPS}/vm0"  # where the guest endpoint has its groups
ENDPOINT_GROUP = f"{COMMANDS_GROUP}/guest"  # of the endpoint itself
CONTROLLERS = ("cpu", "memory", "pids")
ENDPOINT_MEMORY = 16 * 1024 * 1024  # bytes that are not taken from the endpoint, whatever its commands need
KIB, LEAST_RESERVE = 1024, 16 * 1024 * 1024
# A host that is gone is noticed after 2 minutes; the kernel's own values need more than 2 hours.
KEEPALIVE = (("tcp_keepalive_time", 60), ("tcp_keepalive_intvl", 10), ("tcp_keepalive_probes", 6))
OPEN_FILES = 524288  # hard limit, which a process may go up to; the kernel's own is 4096
TERMINAL_GROUP = 5  # tty, in every Debian


class Step:
    """`needed`: without it there is no guest. Otherwise a failure is said and the boot goes on."""

    __slots__ = ("arguments", "name", "needed", "verb")

    def __init__(self, name: str, verb: str, *arguments: str | int | float, needed: bool = True) -> None:
        self.name, self.verb, self.arguments, self.needed = name, verb, arguments, needed

    def __str__(self) -> str:
        return " ".join([self.verb, *map(str, self.arguments)])


def plan_kernel() -> list[Step]:
    """What the command line and the disks are found with; there already when an initramfs ran."""
    return [
        Step("proc", "mount", "proc", "/proc", "proc", "nosuid,nodev,noexec"),
        Step("dev", "mount", "dev", "/dev", "devtmpfs", "nosuid,mode=0755"),
    ]


def plan_root(parameters: Parameters) -> list[Step]:
    disk = parameters.overlay
    return [
        Step("stage", "mount", "stage", STAGE, "tmpfs", "nosuid,nodev,mode=0700"),
        Step("stage", "folder", DISK, 0o700),
        Step("stage", "folder", NEW_ROOT, 0o755),
        *(
            (
                Step("overlay disk", "wait", disk, DISK_WAIT_S),
                Step("overlay disk", "mount", disk, DISK, "ext4", "nodev,noatime"),
            )
            if disk
            else (Step("overlay memory", "mount", "overlay", DISK, "tmpfs", "nodev,size=50%"),)
        ),
        Step("overlay", "folder", f"{DISK}/upper", 0o755),
        Step("overlay", "folder", f"{DISK}/work", 0o755),
        Step(
            "overlay", "mount", "overlay", NEW_ROOT, "overlay",
            f"lowerdir=/,upperdir={DISK}/upper,workdir={DISK}/work,redirect_dir=on",
        ),
        Step("pivot", "pivot", NEW_ROOT),
    ]  # fmt: skip


def plan_mounts() -> list[Step]:
    """In the new root."""
    return [
        Step("proc", "mount", "proc", "/proc", "proc", "nosuid,nodev,noexec"),
        Step("sys", "mount", "sysfs", "/sys", "sysfs", "nosuid,nodev,noexec"),
        Step("dev", "mount", "dev", "/dev", "devtmpfs", "nosuid,mode=0755"),
        # udev would make these; shells open them.
        Step("dev", "link", "/proc/self/fd", "/dev/fd", needed=False),
        Step("dev", "link", "/proc/self/fd/0", "/dev/stdin", needed=False),
        Step("dev", "link", "/proc/self/fd/1", "/dev/stdout", needed=False),
        Step("dev", "link", "/proc/self/fd/2", "/dev/stderr", needed=False),
        Step("devpts", "folder", "/dev/pts", 0o755),
        Step(
            "devpts", "mount", "devpts", "/dev/pts", "devpts",
            f"nosuid,noexec,mode=0620,ptmxmode=0666,gid={TERMINAL_GROUP}",
        ),
        Step("shm", "folder", "/dev/shm", 0o755, needed=False),
        Step("shm", "mount", "shm", "/dev/shm", "tmpfs", "nosuid,nodev,mode=1777", needed=False),
        Step("run", "mount", "run", "/run", "tmpfs", "nosuid,nodev,mode=0755,size=20%"),
        Step("run", "folder", "/run/lock", 0o1777, needed=False),
        Step("tmp", "folder", "/tmp", 0o1777, needed=False),
    ]  # fmt: skip


def plan_cgroups() -> list[Step]:
    return [
        Step("cgroup", "mount", "cgroup", CGROUPS, "cgroup2", "nosuid,nodev,noexec,nsdelegate"),
        Step("cgroup", "delegate", CGROUPS, *CONTROLLERS, needed=False),
        Step("cgroup", "folder", COMMANDS_GROUP, 0o755),
        Step("cgroup", "delegate", COMMANDS_GROUP, *CONTROLLERS, needed=False),
        Step("cgroup", "folder", ENDPOINT_GROUP, 0o755),
        Step("memory", "write", f"{COMMANDS_GROUP}/memory.min", ENDPOINT_MEMORY, needed=False),
        Step("memory", "write", f"{ENDPOINT_GROUP}/memory.min", ENDPOINT_MEMORY, needed=False),
        Step("memory", "limit_memory", COMMANDS_GROUP, needed=False),
    ]


def memory_limit(meminfo: str) -> int:
    """Bytes that all commands may have together, from what is available before the first one starts.

    Without a limit the kernel throws out every page of every program, our own too, before it calls its memory killer:
    minutes in which nobody answers. Within a limit it looks at those who take the memory only. Raises ValueError.
    """
    sizes = {}
    for line in meminfo.splitlines():
        name, _, size = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            sizes[name] = int(size.split()[0]) * KIB
    if len(sizes) != 2:
        raise ValueError("no total and available memory")
    available = sizes["MemAvailable"]
    return max(available // 2, available - max(LEAST_RESERVE, sizes["MemTotal"] // 32))


def plan_names(parameters: Parameters) -> list[Step]:
    name_server = (
        (Step("resolver", "nameserver", parameters.nameserver, needed=False),) if parameters.nameserver else ()
    )
    return [
        Step("names", "settle", needed=False),
        Step("host name", "hostname", parameters.hostname, needed=False),
        Step("hosts", "hosts", parameters.hostname, parameters.gateway, needed=False),
        *name_server,
        Step("machine id", "machine_id", needed=False),
    ]


def plan_network(parameters: Parameters) -> list[Step]:
    steps = [Step("loopback", "up", "lo", needed=False)]
    if parameters.address:
        steps += [
            Step("network", "wait", f"/sys/class/net/{INTERFACE}", INTERFACE_WAIT_S, needed=False),
            Step("network", "address", INTERFACE, parameters.address, parameters.prefix, needed=False),
            Step("network", "up", INTERFACE, needed=False),
        ]
    if parameters.gateway:
        steps.append(Step("network", "route", parameters.gateway, needed=False))
    steps += [
        Step("keepalive", "write", f"/proc/sys/net/ipv4/{name}", value, needed=False) for name, value in KEEPALIVE
    ]
    return steps


def plan_protection() -> list[Step]:
    """Commands may open as many files as elsewhere; the kernel's memory killer takes what they started, never us or the
    endpoint; and a console's Ctrl-Alt-Del is a signal to us, which is how Firecracker asks a guest to end."""
    return [
        Step("open files", "open_files", OPEN_FILES, needed=False),
        Step("protection", "write", "/proc/self/oom_score_adj", -1000, needed=False),
        Step("protection", "ask_before_reset", needed=False),
    ]
