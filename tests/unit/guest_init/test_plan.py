"""What a boot does, as text: the order is the contract, and everything mounted has the right options."""

from __future__ import annotations

import pytest

from vm0.guest_init import machine, plan
from vm0.guest_init.parameters import parse

DISK = parse("vm0.ip=192.168.241.2/29 vm0.gw=192.168.241.1 vm0.dns=192.168.241.1 vm0.overlay=/dev/vdb")
BARE = parse("")


def lines(steps: list[plan.Step]) -> list[str]:
    return [str(step) for step in steps]


def whole(parameters: object = DISK) -> list[plan.Step]:
    assert isinstance(parameters, type(DISK))
    return [
        *plan.plan_kernel(),
        *plan.plan_root(parameters),
        *plan.plan_mounts(),
        *plan.plan_cgroups(),
        *plan.plan_names(parameters),
        *plan.plan_network(parameters),
        *plan.plan_protection(),
    ]


def test_the_root_with_a_disk() -> None:
    assert lines(plan.plan_root(DISK)) == [
        "mount stage /mnt tmpfs nosuid,nodev,mode=0700",
        "folder /mnt/disk 448",
        "folder /mnt/root 493",
        "wait /dev/vdb 5.0",
        "mount /dev/vdb /mnt/disk ext4 nodev,noatime",
        "folder /mnt/disk/upper 493",
        "folder /mnt/disk/work 493",
        "mount overlay /mnt/root overlay lowerdir=/,upperdir=/mnt/disk/upper,workdir=/mnt/disk/work,redirect_dir=on",
        "pivot /mnt/root",
    ]


def test_the_root_in_memory() -> None:
    assert lines(plan.plan_root(BARE))[3:5] == [
        "mount overlay /mnt/disk tmpfs nodev,size=50%",
        "folder /mnt/disk/upper 493",
    ]


def test_what_is_mounted() -> None:
    mounts = [line for line in lines([*plan.plan_mounts(), *plan.plan_cgroups()]) if line.startswith("mount")]
    assert mounts == [
        "mount proc /proc proc nosuid,nodev,noexec",
        "mount sysfs /sys sysfs nosuid,nodev,noexec",
        "mount dev /dev devtmpfs nosuid,mode=0755",
        "mount devpts /dev/pts devpts nosuid,noexec,mode=0620,ptmxmode=0666,gid=5",
        "mount shm /dev/shm tmpfs nosuid,nodev,mode=1777",
        "mount run /run tmpfs nosuid,nodev,mode=0755,size=20%",
        "mount cgroup /sys/fs/cgroup cgroup2 nosuid,nodev,noexec,nsdelegate",
    ]


def test_groups_of_commands_get_their_controllers_before_anything_is_in_them() -> None:
    steps = lines(plan.plan_cgroups())
    assert steps.index("delegate /sys/fs/cgroup cpu memory pids") < steps.index("folder /sys/fs/cgroup/vm0 493")
    assert steps.index("delegate /sys/fs/cgroup/vm0 cpu memory pids") < steps.index(
        "folder /sys/fs/cgroup/vm0/guest 493"
    )


def test_the_network() -> None:
    assert lines(plan.plan_network(DISK))[:5] == [
        "up lo",
        "wait /sys/class/net/eth0 2.0",
        "address eth0 192.168.241.2 29",
        "up eth0",
        "route 192.168.241.1",
    ]
    assert lines(plan.plan_network(BARE)) == [
        "up lo",
        "write /proc/sys/net/ipv4/tcp_keepalive_time 60",
        "write /proc/sys/net/ipv4/tcp_keepalive_intvl 10",
        "write /proc/sys/net/ipv4/tcp_keepalive_probes 6",
    ]


def test_names() -> None:
    assert lines(plan.plan_names(DISK)) == [
        "settle",
        "hostname vm0",
        "hosts vm0 192.168.241.1",
        "nameserver 192.168.241.1",
        "machine_id",
    ]
    assert lines(plan.plan_names(BARE)) == ["settle", "hostname vm0", "hosts vm0 ", "machine_id"]


@pytest.mark.parametrize("parameters", [DISK, BARE])
def test_every_verb_is_known(parameters: object) -> None:
    assert {step.verb for step in whole(parameters)} <= machine.VERBS.keys()
    assert machine.VERBS.keys() == {step.verb for step in whole()}, "a verb that nobody needs"


def test_names_network_and_protection_never_stop_a_boot() -> None:
    steps = [*plan.plan_names(DISK), *plan.plan_network(DISK), *plan.plan_protection()]
    assert not [str(step) for step in steps if step.needed]
    assert all(step.needed for step in plan.plan_root(DISK))


def meminfo(total_mib: int, available_mib: int) -> str:
    return (
        f"MemTotal:  {total_mib * 1024} kB\nMemFree:  1 kB\nMemAvailable:   {available_mib * 1024} kB\nBuffers: 0 kB\n"
    )


@pytest.mark.parametrize(
    ("total", "available", "limit"), [(212, 173, 157), (2000, 1900, 1837.5), (64, 24, 12), (16384, 16000, 15488)]
)
def test_the_memory_of_commands(total: int, available: int, limit: float) -> None:
    """All that is available but a reserve, so that the kernel never has to throw out our own pages."""
    assert plan.memory_limit(meminfo(total, available)) == limit * 1024 * 1024


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n"])
def test_a_machine_that_does_not_tell_its_memory(text: str) -> None:
    with pytest.raises(ValueError):
        plan.memory_limit(text)
