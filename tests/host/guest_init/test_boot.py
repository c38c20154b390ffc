"""The plan carried out for real: what a guest finds, and that nothing of the machine below is in its reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.guest_init.machine import Ended, run_machine

pytestmark = pytest.mark.host

PROOF = "vm0-guest-init-proof"
BOOT = """
command_line("quiet vm0.ip=192.168.241.2/29 vm0.gw=192.168.241.1 vm0.dns=192.168.241.1 vm0.hostname=guest-1 vm0.new=x")
warnings = []

class Said:
    def say(self, text):
        warnings.append(text)

def mode(path):
    return oct(os.stat(path).st_mode & 0o7777)

def read(path):
    with open(path) as file:
        return file.read()

parameters = main.boot(Said())
with open("/PROOF", "w") as file:
    file.write("x")
terminal, slave = os.openpty()
told(
    warnings=warnings,
    mounts=[line.split()[1:3] for line in read("/proc/self/mounts").splitlines()],
    parents=sorted({line.split()[1] for line in read("/proc/self/mountinfo").splitlines()} -
                   {line.split()[0] for line in read("/proc/self/mountinfo").splitlines()}),
    stage=os.listdir("/mnt"),
    modes={path: mode(path) for path in ("/tmp", "/run", "/run/lock", "/dev/shm", "/dev/pts/ptmx", "/dev")},
    terminal=[os.ttyname(slave), mode(os.ttyname(slave))],
    links={name: os.readlink(f"/dev/{name}") for name in ("fd", "stdin", "stdout", "stderr")},
    groups=sorted(entry.name for entry in os.scandir("/sys/fs/cgroup/vm0") if entry.is_dir()),
    hostname=os.uname().nodename,
    files={path: read(path) for path in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/machine-id")},
    addresses={link["ifname"]: [a["local"] + "/" + str(a["prefixlen"]) for a in link["addr_info"]
               if a["family"] == "inet"] for link in json.loads(run("ip", "-j", "address"))},
    up=[link["ifname"] for link in json.loads(run("ip", "-j", "link")) if "UP" in link["flags"]],
    routes=[[r["dst"], r.get("gateway"), r["dev"]] for r in json.loads(run("ip", "-j", "route"))],
    keepalive=[int(read(f"/proc/sys/net/ipv4/tcp_keepalive_{n}")) for n in ("time", "intvl", "probes")],
    where=os.getcwd(),
    open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
)
""".replace("PROOF", PROOF)

# As a kernel leaves it that mounts the root itself; the initramfs leaves /dev mounted.
NOTHING_MOUNTED = """
for path in ("/dev", "/sys", "/proc"):
    with contextlib.suppress(OSError):
        while True:
            system_calls.umount(path, system_calls.MNT_DETACH)
assert not os.path.exists("/proc/self")
"""


@pytest.fixture(scope="module", params=["", NOTHING_MOUNTED], ids=["mounts", "no-mounts"])
def booted(request: pytest.FixtureRequest) -> Ended:
    ended = run_machine(request.param + BOOT)
    assert ended.code == 0 and len(ended.facts) == 1, ended
    return ended


def test_nothing_but_the_new_root_is_mounted(booted: Ended) -> None:
    facts = booted.facts[0]
    assert facts["mounts"] == [
        ["/", "overlay"],
        ["/proc", "proc"],
        ["/sys", "sysfs"],
        ["/dev", "devtmpfs"],
        ["/dev/pts", "devpts"],
        ["/dev/shm", "tmpfs"],
        ["/run", "tmpfs"],
        ["/sys/fs/cgroup", "cgroup2"],
    ]
    assert len(facts["parents"]) == 1, "one mount has no parent among the others: the root"
    assert facts["where"] == "/"


def test_writes_stay_in_the_overlay(booted: Ended) -> None:
    assert not Path(f"/{PROOF}").exists()
    assert "guest-1" not in Path("/etc/hosts").read_text()
    assert not {"disk", "root"} & set(booted.facts[0]["stage"])


def test_folders_and_terminals(booted: Ended) -> None:
    facts = booted.facts[0]
    assert facts["modes"] == {
        "/tmp": "0o1777",
        "/run": "0o755",
        "/run/lock": "0o1777",
        "/dev/shm": "0o1777",
        "/dev/pts/ptmx": "0o666",
        "/dev": "0o755",
    }
    assert facts["terminal"] == ["/dev/pts/0", "0o620"]
    assert facts["links"]["fd"] == "/proc/self/fd"
    assert [facts["links"][name] for name in ("stdin", "stdout", "stderr")] == [f"/proc/self/fd/{n}" for n in range(3)]


def test_names(booted: Ended) -> None:
    facts = booted.facts[0]
    files = facts["files"]
    assert (facts["hostname"], files["/etc/hostname"]) == ("guest-1", "guest-1\n")
    assert "127.0.1.1\tguest-1 # vm0\n192.168.241.1\tapi.vm0.internal # vm0\n" in files["/etc/hosts"]
    assert files["/etc/resolv.conf"] == "nameserver 192.168.241.1\n"
    assert len(bytes.fromhex(files["/etc/machine-id"])) == 16


def test_the_network(booted: Ended) -> None:
    facts = booted.facts[0]
    assert facts["addresses"]["lo"] == ["127.0.0.1/8"]
    assert facts["addresses"]["eth0"] == ["192.168.241.2/29"]
    assert {"lo", "eth0"} <= set(facts["up"])
    assert ["default", "192.168.241.1", "eth0"] in facts["routes"]
    assert facts["keepalive"] == [60, 10, 6]


def test_groups_are_there_and_what_is_missing_is_told_once(booted: Ended) -> None:
    facts = booted.facts[0]
    assert facts["groups"] == ["guest"]
    assert facts["warnings"][0] == "warning: unknown kernel parameters: new"
    allowed = tuple(f"warning: {name}: " for name in ("cgroup", "memory", "open files", "protection"))
    # what this machine may not have, or not allow
    assert [text for text in facts["warnings"][1:] if not text.startswith(allowed)] == []
