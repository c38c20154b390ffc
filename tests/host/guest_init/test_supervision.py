"""PID 1 for real: it reaps, ends what must end, starts a crashed endpoint once more, and switches off; never a panic.

The endpoint is a function of the test's. In a namespace of processes, reboot(2) ends PID 1 by a signal: SIGINT for
power off, SIGHUP for a reset.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.host.guest_init.machine import run_machine

pytestmark = pytest.mark.host

POWERED_OFF, RESET = -signal.SIGINT, -signal.SIGHUP
COMMON = """
supervisor.ENDPOINT_GRACE_S, supervisor.GRACE_S = 0.5, 0.3
command_line("vm0.token=0102 PARAMETERS")

class Endpoint:
    main = staticmethod(lambda argv: endpoint(argv))

main.guest_endpoint = Endpoint

def token_fd(argv):
    return int(argv[argv.index("--token-fd") + 1])

def processes():
    "pid to state of everything that is no thread of the kernel's"
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                found[int(entry)] = file.read().rpartition(")")[2].split()[0]
    return found

def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)

def daemon(ignores=()):
    "A process whose parent ends at once, so that it comes to PID 1; returns its pid."
    reading, writing = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            for number in ignores:
                signal.signal(number, signal.SIG_IGN)
            os.write(writing, str(os.getpid()).encode())
            signal.pause()
        os._exit(0)
    os.wait()
    return int(os.read(reading, 20))
"""


def life(endpoint: str, parameters: str = "", main: str = "main.main()") -> str:
    return f"{COMMON.replace('PARAMETERS', parameters)}\n{endpoint}\n{main}\n"


def test_an_endpoint_that_ends_well_ends_the_machine() -> None:
    ended = run_machine(
        life("""
def endpoint(argv):
    told(argv=argv, blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), pid=os.getppid(),
         token=os.pread(token_fd(argv), 100, 0).hex(), inherited=os.get_inheritable(token_fd(argv)))
    return 0
""")
    )
    assert ended.code == POWERED_OFF
    (facts,) = ended.facts
    assert facts["argv"][:2] == ["--connect", "serial:vm0"] and facts["argv"][-1] == "--machine"
    assert (facts["blocked"], facts["pid"]) == ([], 1)
    assert (facts["token"], facts["inherited"]) == ("0102", False)
    assert [line for line in ended.console if "warning" not in line] == []


def test_a_machine_without_power_off_is_reset() -> None:
    assert run_machine(life("endpoint = lambda argv: 0", "reboot=k")).code == RESET


def test_a_crashed_endpoint_is_started_once_more_with_the_newest_token() -> None:
    """And nothing that it had started, nor a group of it, is left by then."""
    ended = run_machine(
        life("""
def endpoint(argv):
    fd, group = token_fd(argv), "/sys/fs/cgroup/vm0/exec-1/inner"
    told(token=os.pread(fd, 100, 0).hex(), processes=len(processes()), group=os.path.exists(group))
    if os.pread(fd, 100, 0) == bytes((1, 2)):
        os.pwrite(fd, b"new", 0)
        os.ftruncate(fd, 3)
        os.makedirs(group)
        machine.write(f"{group}/cgroup.procs", daemon((signal.SIGTERM,)))
        daemon()
        os.kill(os.getpid(), signal.SIGKILL)
    return 3
""")
    )
    assert ended.code == POWERED_OFF
    assert ended.facts == [
        {"token": "0102", "processes": 2, "group": False},
        {"token": b"new".hex(), "processes": 2, "group": False},
    ]
    assert ended.console[-2:] == [
        "vm0: guest endpoint died: SIGKILL; starting it again",
        "vm0: guest endpoint died: exit code 3; powering off",
    ]


def test_an_endpoint_that_raises_is_a_crash_with_a_line() -> None:
    ended = run_machine(
        life("""
def endpoint(argv):
    raise RuntimeError("out of\\nluck")
""")
    )
    assert ended.code == POWERED_OFF
    assert ended.console[-4:] == [
        "vm0: guest endpoint failed: RuntimeError('out of\\nluck')",
        "vm0: guest endpoint died: exit code 70; starting it again",
        "vm0: guest endpoint failed: RuntimeError('out of\\nluck')",
        "vm0: guest endpoint died: exit code 70; powering off",
    ]


def test_an_endpoint_that_ends_well_the_second_time_is_no_crash() -> None:
    ended = run_machine(
        life("""
def endpoint(argv):
    first = os.pread(token_fd(argv), 1, 0) == bytes((1,))
    os.pwrite(token_fd(argv), b"2", 0)
    return 1 if first else 0
""")
    )
    assert (ended.code, ended.console[-1]) == (POWERED_OFF, "vm0: guest endpoint died: exit code 1; starting it again")


def test_orphans_are_reaped() -> None:
    ended = run_machine(
        life("""
def endpoint(argv):
    pids = [daemon() for _ in range(20)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes().keys() & set(pids))
    told(left=len(processes()))
    return 0
""")
    )
    assert (ended.code, ended.facts) == (POWERED_OFF, [{"left": 2}])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGPWR])
def test_a_signal_ends_the_machine_in_order(number: signal.Signals) -> None:
    """The endpoint first, which has time to end what it runs; then whatever else there is."""
    ended = run_machine(
        life(f"""
def endpoint(argv):
    other = daemon()
    def stop(*_):
        told(asked=True, other=processes().get(other))
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    os.kill(1, {int(number)})
    while True:
        signal.pause()
""")
    )
    assert ended.code == POWERED_OFF
    assert [(fact["asked"], fact["other"] in ("R", "S")) for fact in ended.facts] == [(True, True)]  # it lived then
    assert ended.console[-1] == f"vm0: stopping: {number.name}"


def test_what_ignores_sigterm_is_killed() -> None:
    begun = time.monotonic()
    ended = run_machine(
        life("""
def endpoint(argv):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stopped = daemon((signal.SIGTERM,))
    os.kill(stopped, signal.SIGSTOP)
    daemon((signal.SIGTERM,))
    os.kill(1, signal.SIGTERM)
    while True:
        signal.pause()
""")
    )
    assert ended.code == POWERED_OFF
    assert 0.8 < time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ("vm0.ip=nowhere", "vm0: init failed at kernel parameters: vm0.ip=nowhere: not ADDRESS/PREFIX"),
        (
            "vm0.overlay=/dev/no-such-disk",
            "vm0: init failed at overlay disk: [Errno 2] not there after 0.05 s: '/dev/no-such-disk'",
        ),
        ("vm0.overlay=/dev/null", "vm0: init failed at overlay disk: [Errno 15] mount ext4: "),
    ],
)
def test_a_boot_that_fails_says_at_which_step_and_ends(parameters: str, line: str) -> None:
    ended = run_machine(f'plan.DISK_WAIT_S = 0.05\ncommand_line("{parameters}")\nmain.main()')
    assert ended.code == POWERED_OFF
    assert len(ended.console) == 1 and ended.console[0].startswith(line)


def test_our_own_mistake_is_no_panic() -> None:
    ended = run_machine('command_line("")\nmain.boot = lambda console: 1 / 0\nmain.main()')
    assert ended.code == POWERED_OFF
    assert ended.console == ["vm0: init failed: ZeroDivisionError('division by zero')"]


def test_a_bundle_that_cannot_be_imported_is_no_panic() -> None:
    """The script at INIT_PATH itself: there is no such bundle on this machine."""
    ended = run_machine("""
from vm0.guest_init.init_script import SCRIPT
for name in [name for name in sys.modules if name.partition(".")[0] == "vm0"]:
    del sys.modules[name]
sys.path.remove(sys.argv[1])
exec(SCRIPT)
""")
    assert ended.code == POWERED_OFF
    assert ended.console == ["vm0: init failed at start: ModuleNotFoundError(\"No module named 'vm0'\")"]
