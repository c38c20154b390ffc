"""A start that fails at any of its steps says which, ends at once or at its limit, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.host.netns.machine import PrivateHost
from tests.host.sandbox_qemu.conftest import BOOTED_MIB, SIZE_MIB, NewFactory, config
from tests.host.sandbox_qemu.leftovers import Leftovers
from tests.support.fake_qemu.installation import FakeQemu
from vm0.microvm import process, threads
from vm0.sandbox import SandboxError, StartError, State
from vm0.sandbox_qemu import QemuSandboxFactory, monitor, sandbox, vm
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.host

LIMIT_S = 0.5  # of every step: what hangs is ended by it
AT_ONCE_S = 10.0  # far below the limits as they are shipped

Arrange = Callable[[QemuSandbox, pytest.MonkeyPatch, contextlib.ExitStack], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`step` fails, with `why` in the message, since VMMs have these `faults` or something is `arranged` so."""

    name: str
    step: str
    why: str
    faults: dict[str, object] = field(default_factory=dict)
    arranged: Arrange | None = None


def the_tap_is_in_use(sandbox: QemuSandbox, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    stack.callback(os.close, sandbox.seat.namespace.open_tap(0))


def the_namespace_is_gone(sandbox: QemuSandbox, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    namespace = sandbox.seat.namespace
    patch.setattr(type(namespace), "open_tap", lambda *_: os.open(os.devnull, os.O_RDONLY))
    patch.setattr(threads, "call_inside", lambda *_: os.open("/no/such/namespace", os.O_RDONLY))


def the_disk_is_gone(sandbox: QemuSandbox, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    sandbox.seat.disk.unlink()


def the_cgroup_is_gone(sandbox: QemuSandbox, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    if sandbox.seat.cgroup is None:
        pytest.skip("no writable cgroup v2 hierarchy")
    sandbox.seat.cgroup.rmdir()


def setpriv_is_missing(sandbox: QemuSandbox, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    patch.setattr(process, "unprivileged", lambda launch: ("/no/such/setpriv",))


def another_token_is_due(sandbox: QemuSandbox, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    patch.setattr("vm0.sandbox_qemu.sandbox.secrets.token_bytes", lambda count: b"t" * count)
    patch.setattr("vm0.sandbox_qemu.sandbox.new_kernel_parameters", lambda *_: "vm0.token=00")


BOTH = (
    Case(name="tap-in-use", step="tap", why="busy", arranged=the_tap_is_in_use),
    Case(name="no-disk", step="open", why="No such file", arranged=the_disk_is_gone),
    Case(name="no-namespace", step="spawn", why="cannot be started", arranged=the_namespace_is_gone),
    Case(name="no-cgroup", step="cgroup", why="No such file", arranged=the_cgroup_is_gone),
    Case(name="no-setpriv", step="spawn", why="/no/such/setpriv", arranged=setpriv_is_missing),
    Case(name="exits", step="monitor", why="QEMU exited with 3", faults={"exit_at_start": 3}),
    Case(name="exits-greeted", step="monitor", why="QEMU exited with 4", faults={"exit_after_greeting": 4}),
    Case(name="no-greeting", step="monitor", why="not answer within", faults={"greet": False}),
    Case(name="no-answer", step="monitor", why="not answer within", faults={"hang": ["qmp_capabilities"]}),
    Case(name="refuses-capabilities", step="monitor", why="Negotiation", faults={"refuse": {"qmp_capabilities": "x"}}),
    Case(name="killed", step="monitor", why="was killed by SIGKILL", faults={"die_after_ms": 0, "greet": False}),
    Case(name="identity-refused", step="identity", why="Restore fails", faults={"guest_errors": ["Restore"]}),
    Case(name="dies-at-identity", step="identity", why="closed the connection", faults={"guest_exits_on": "Restore"}),
)
BOOT = (
    Case(name="deaf", step="boot", why="not done within", faults={"deaf": True}),
    Case(name="deaf-and-dying", step="boot", why="killed by SIGKILL", faults={"deaf": True, "die_after_ms": 300}),
    Case(name="no-pong", step="boot", why="exited with 0", faults={"guest_exits_on": "Ping"}),
    Case(name="noise", step="boot", why="protocol error", faults={"link_noise": 100_000}),
    Case(name="token", step="boot", why="wrong token", arranged=another_token_is_due),
)
RESTORE = (
    Case(name="load-refused", step="load", why="no, thanks", faults={"refuse": {"migrate-incoming": "no, thanks"}}),
    Case(name="capability", step="load", why="too old", faults={"refuse": {"migrate-set-capabilities": "too old"}}),
    Case(name="load-hangs", step="load", why="no answer within", faults={"hang": ["migrate-incoming"]}),
    Case(name="dies-loading", step="load", why="exited with 5", faults={"exit_on": {"migrate-incoming": 5}}),
    Case(name="cont-refused", step="continue", why="never", faults={"refuse": {"cont": "never"}}),
    Case(name="cont-hangs", step="continue", why="no answer within", faults={"hang": ["cont"]}),
    Case(name="dies-continuing", step="continue", why="exited with 6", faults={"exit_on": {"cont": 6}}),
    Case(name="deaf", step="identity", why="not done within", faults={"deaf": True}),
    Case(name="resume-refused", step="resume", why="Resume fails", faults={"guest_errors": ["Resume"]}),
    Case(name="dies-at-resume", step="resume", why="closed the connection", faults={"guest_exits_on": "Resume"}),
)
CASES = [
    *(pytest.param(case, BOOTED_MIB, id=f"boot-{case.name}") for case in (*BOTH, *BOOT)),
    *(pytest.param(case, SIZE_MIB, id=f"restore-{case.name}") for case in (*BOTH, *RESTORE)),
]


@pytest.mark.parametrize(("case", "memory_mib"), CASES)
async def test_a_start_that_fails(
    factory: QemuSandboxFactory,
    leftovers: Leftovers,
    fake: FakeQemu,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    memory_mib: int,
) -> None:
    for module, name in (
        *((vm, name) for name in ("SPAWN_S", "MONITOR_S", "BOOT_S", "LOAD_S")),
        *((monitor, name) for name in ("CONNECT_S", "ANSWER_S", "MIGRATE_S")),
        (sandbox, "IDENTITY_S"),
    ):
        monkeypatch.setattr(module, name, LIMIT_S * (2 if module is vm else 1))  # a step's is above what it asks for
    monkeypatch.setattr(vm, "EXIT_NOTE_S", LIMIT_S / 2)
    made = await factory.create(config(memory_mib=memory_mib))
    assert isinstance(made, QemuSandbox)
    fake.misbehave(**case.faults)
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        if case.arranged:
            case.arranged(made, patch, stack)
        begun = time.monotonic()
        with pytest.raises(StartError) as caught:
            await made.start()
        assert time.monotonic() - begun < AT_ONCE_S
    assert caught.value.step == case.step, caught.value
    assert case.why in str(caught.value)
    assert made.state is State.STOPPED
    assert leftovers.vmms() == set(), "a start that failed left its VMM"
    with pytest.raises(SandboxError):
        await made.start()
    await factory.destroy(made)
    await leftovers.assert_none()


async def test_the_one_beside_it_is_not_concerned(factory: QemuSandboxFactory, fake: FakeQemu) -> None:
    good = await factory.create(config("good"))
    await good.start()
    fake.misbehave(exit_after_greeting=1)
    bad = await factory.create(config("bad"))
    with pytest.raises(StartError):
        await bad.start()
    fake.misbehave()
    again = await factory.create(config("again"))
    await asyncio.gather(again.start(), factory.destroy(bad))
    assert [sandbox.state for sandbox in (good, again)] == [State.RUNNING] * 2


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"exit_after_greeting": 4}, "step monitor"),
        ({"guest_errors": ["Exec"]}, "Exec fails"),
        ({"guest_errors": ["Quiesce"]}, "Quiesce fails"),
        ({"refuse": {"stop": "not now"}}, "QEMU refuses stop"),
        ({"refuse": {"migrate": "never"}}, "QEMU refuses migrate"),
        ({"exit_on": {"getfd": 7}}, "getfd"),
        ({"hang": ["migrate"]}, "migrate: no answer within"),
    ],
)
async def test_a_golden_machine_that_fails_makes_no_snapshot(
    new_factory: NewFactory,
    fake: FakeQemu,
    host: PrivateHost,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, object],
    why: str,
) -> None:
    """Entering the factory fails with the reason; the next time, with a QEMU that works, it is made."""
    monkeypatch.setattr(monitor, "ANSWER_S", LIMIT_S)
    store = tmp_path / "roots" / "snapshots"
    async with new_factory(snapshots=None):
        pass  # what stays of a factory's root: its lock
    store.mkdir(mode=0o700)
    before = Leftovers(host, fake, tmp_path / "roots")
    fake.misbehave(**faults)
    with pytest.raises(SandboxError, match=why):
        async with new_factory(snapshots=store):
            pass
    for lock in store.glob(".*.lock"):
        lock.unlink()
    await before.assert_none()
    fake.misbehave()
    async with new_factory(snapshots=store) as factory:
        sandbox = await factory.create(config())
        await sandbox.start()
