"""Commands on a real guest: what the shared suite of all backends does not ask."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.capabilities import require
from tests.vsock.endpoints import Endpoint, connected_guest
from tests.vsock.observation import alive, cpu_s, descriptors, until_dead, until_settled
from vm0.guest_bundle import GuestBundle
from vm0.sandbox import Ended, ExecRequest, PtySize, Reason, SandboxOperationError
from vm0.sandbox.testing import sh
from vm0.vsock_host import GuestClient

pytestmark = pytest.mark.host

IS_ROOT = os.geteuid() == 0


async def lines_of(client: GuestClient, *argv: str) -> list[str]:
    result = await client.exec(ExecRequest(argv=argv))
    assert result.exit_code == 0, result
    return result.stdout.data.decode().split()


async def test_200_commands_at_once(contained: Endpoint) -> None:
    assert contained.client is not None
    before = descriptors(contained.pid)
    requests = [sh(f"echo {n}; sleep 0.0{n % 10}; cat; exit {n % 200}", stdin=b"in%d" % n) for n in range(200)]
    results = await asyncio.gather(*(contained.client.exec(request) for request in requests))
    assert [(r.stdout.data, r.exit_code) for r in results] == [(b"%d\nin%d" % (n, n), n) for n in range(200)]
    await until_settled(contained.pid, before)


async def test_a_command_gets_three_descriptors(client: GuestClient) -> None:
    look = "for n in $(seq 0 60); do [ -e /proc/$$/fd/$n ] && echo $n; done"
    for request in (sh(look), sh(look, stdin=b"in"), sh(look, pty=PtySize(24, 80))):
        result = await client.exec(request)
        assert result.stdout.data.split() == [b"0", b"1", b"2"]


async def test_an_orphan_that_holds_stdout_delays_the_result_by_the_drain_limit(contained: Endpoint) -> None:
    assert contained.client is not None
    started = time.monotonic()
    result = await contained.client.exec(sh("(trap '' HUP; exec sleep 1000) & echo $!", drain_s=0.5))
    took = time.monotonic() - started
    assert (result.ended, result.exit_code, result.drain_expired) == (Ended.EXITED, 0, True)
    assert 0.5 <= took < 2.5
    assert alive(int(result.stdout.data)), "a command may leave something running"


async def test_an_orphan_that_floods_stdout_delays_the_result_by_the_drain_limit(client: GuestClient) -> None:
    process = await client.start_process(sh("yes & exit 4", drain_s=0.5, stdout_limit=None))
    started = time.monotonic()
    async for _ in process.stdout:
        pass
    result = await process.wait()
    assert 0.4 < time.monotonic() - started < 2.5
    assert (result.exit_code, result.drain_expired) == (4, True)


async def test_an_ended_stream_is_not_called_held(client: GuestClient) -> None:
    for _ in range(20):
        result = await client.exec(sh("head -c 60000 /dev/zero", drain_s=0.0))
        assert (len(result.stdout.data), result.drain_expired) == (60_000, False)


async def test_what_does_not_hold_an_output_delays_nothing(client: GuestClient) -> None:
    started = time.monotonic()
    result = await client.exec(sh("sleep 1000 >/dev/null 2>&1 & echo $!", drain_s=30.0))
    assert time.monotonic() - started < 5
    assert not result.drain_expired and result.exit_code == 0


DAEMON = "(setsid sh -c 'echo $$; trap \"\" TERM HUP; while :; do sleep 1; done' &) ; sleep 1000"


@pytest.mark.parametrize("group", ["cgroup"], indirect=True)
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_daemon_of_an_ended_command_is_dead(contained: Endpoint, how: str) -> None:
    """It has a session and a parent of its own: only the cgroup finds it."""
    assert contained.client is not None
    request = sh(DAEMON, timeout_s=0.5 if how == "timeout" else None, grace_s=0.2, stdout_limit=None, drain_s=1.0)
    process = await contained.client.start_process(request)
    daemon = int(await process.stdout.read())
    assert alive(daemon)
    if how == "cancel":
        await process.cancel()
    result = await process.wait()
    assert result.ended is (Ended.TIMED_OUT if how == "timeout" else Ended.CANCELLED)
    await until_dead(daemon, limit_s=1.0)


async def test_a_daemon_ends_with_the_link(contained: Endpoint) -> None:
    """With or without a cgroup: the guest adopts orphans, so it finds them at the end."""
    assert contained.client is not None
    process = await contained.client.start_process(sh(DAEMON, stdout_limit=None))
    daemon = int(await process.stdout.read())
    contained.client.close()
    await until_dead(daemon, process.pid)


async def test_a_cancelled_shell_ends_by_the_signal(contained: Endpoint) -> None:
    """The shell must get it before it sees its child die of it, else it exits with a code of its own."""
    assert contained.client is not None
    ends = []
    for _ in range(40):
        process = await contained.client.start_process(sh("sleep 1000; :"))
        await process.cancel()
        result = await process.wait()
        ends.append((result.ended, result.signal, result.exit_code))
    assert set(ends) == {(Ended.CANCELLED, signal.SIGTERM, None)}


@pytest.mark.parametrize("number", [signal.NSIG, 255])
async def test_a_signal_that_does_not_exist_changes_nothing(client: GuestClient, number: int) -> None:
    process = await client.start_process(sh("read line; echo $line", stdin_stream=True))
    await process.signal(number)
    await process.signal(0)
    await client.ping()
    await process.write_stdin(b"still here\n")
    assert (await process.wait()).stdout.data == b"still here\n"


@pytest.mark.parametrize("number", [-1, 256, 2**40])
async def test_numbers_that_the_wire_cannot_carry(client: GuestClient, number: int) -> None:
    process = await client.start_process(sh("sleep 1000", pty=PtySize(1, 1)))
    for call in (process.signal(number), process.resize(number * 2**16, 1)):
        with pytest.raises(SandboxOperationError) as caught:
            await call
        assert caught.value.reason is Reason.HOST
    await process.cancel()
    assert (await process.wait()).ended is Ended.CANCELLED


@pytest.mark.parametrize("timeout_s", [30 * 86400.0, 1e15])
async def test_a_very_long_time_limit(client: GuestClient, timeout_s: float) -> None:
    """Longer than epoll can count in milliseconds."""
    process = await client.start_process(sh("read line", stdin_stream=True, timeout_s=timeout_s))
    await client.ping()
    await process.close_stdin()
    assert (await process.wait()).ended is Ended.EXITED


@pytest.mark.parametrize("drain_s", [0.0, 0.1])
async def test_output_that_waits_for_credit_survives_the_end_of_the_command(
    guest: Endpoint, client: GuestClient, drain_s: float
) -> None:
    """300,000 bytes are more than a window and less than a window and a pipe: the command can end, its output waits.
    The guest must neither throw it away at the drain limit nor spin until the credit comes."""
    size = 300_000
    request = sh(f"head -c {size} /dev/zero; sleep 0.2", stdout_limit=None, drain_s=drain_s)
    process = await client.start_process(request)
    await until_dead(process.pid)
    before = cpu_s(guest.pid)
    await asyncio.sleep(1.0)  # several drain limits
    assert cpu_s(guest.pid) - before < 0.3
    seen = sum([len(piece) async for piece in process.stdout])
    result = await process.wait()
    assert (seen, result.stdout.total, result.drain_expired) == (size, size, False)


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest(argv=("a\0b",)),
        ExecRequest(argv=("true",), cwd="/no/such/folder"),
        ExecRequest(argv=("true",), cwd="/etc/passwd"),
        ExecRequest(argv=("true",), cwd="/tmp/\udcff"),
        ExecRequest(argv=("true",), cwd="a\0b"),
        ExecRequest(argv=("true",), env={"A=B": "c"}),
        ExecRequest(argv=("true",), env={"A": "b\0c"}),
        ExecRequest(argv=("/tmp",)),
        ExecRequest(argv=("/no/such/\udcff",)),
        ExecRequest(argv=("",)),
        ExecRequest(argv=("true", "x" * 200_000)),  # over the kernel's limit for one argument
    ],
    ids=repr,
)
async def test_commands_that_cannot_start(client: GuestClient, request_: ExecRequest) -> None:
    result = await client.exec(request_)
    assert result.ended is Ended.COULD_NOT_START
    assert result.shell_code in (126, 127) and result.diagnostic
    await client.ping()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ExecRequest(argv=()), "invalid"),
        (ExecRequest(argv=("a", "b"), shell=True), "invalid"),
        (ExecRequest(argv=("true",), user="nobody-has-this-name"), "not_found"),
        (ExecRequest(argv=("true",), user="a\0b"), "invalid"),
    ],
)
async def test_commands_that_are_refused(client: GuestClient, request_: ExecRequest, code: str) -> None:
    with pytest.raises(SandboxOperationError) as caught:
        await client.exec(request_)
    assert (caught.value.reason, caught.value.code) == (Reason.GUEST, code)
    await client.ping()


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest(argv=("x" * 2_000_000,)),
        ExecRequest(argv=("true",), stdin=bytes(600_000)),
        ExecRequest(argv=("true",), user="\ud800"),
        ExecRequest(argv=("true",), grace_s=-1),
    ],
    ids=["argv", "stdin", "user", "grace"],
)
async def test_commands_that_do_not_fit_the_wire(client: GuestClient, request_: ExecRequest) -> None:
    with pytest.raises(SandboxOperationError) as caught:
        await client.exec(request_)
    assert caught.value.reason is Reason.HOST
    await client.ping()


async def test_names_that_are_not_utf_8(client: GuestClient) -> None:
    result = await client.exec(ExecRequest(argv=("printf", "%s|", "\udcff\udcfe"), env={"N": "\udc80"}))
    assert result.stdout.data == b"\xff\xfe|"


async def test_another_user_has_nothing_of_root(contained: Endpoint) -> None:
    require(IS_ROOT, "needs root")
    assert contained.client is not None
    account = pwd.getpwnam("nobody")
    script = "cat /proc/self/status; id -u; pwd; env; touch /root/x 2>&1; kill -0 $PPID 2>&1"
    result = await contained.client.exec(sh(script, user="nobody", cwd="/tmp"))
    text = result.stdout.data.decode()
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {str(account.pw_uid)}
    assert set(fields["Gid"].split()) == {str(account.pw_gid)}
    assert {int(word) for word in fields["Groups"].split()} <= set(os.getgrouplist("nobody", account.pw_gid))
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    environment = {line.split("=")[0] for line in text.splitlines() if "=" in line}
    assert environment <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    assert f"HOME={account.pw_dir}" in text and "USER=nobody" in text
    assert "denied" in text and "not permitted" in text.lower()


async def test_another_user_can_be_cancelled_and_uses_a_terminal(contained: Endpoint) -> None:
    require(IS_ROOT, "needs root")
    assert contained.client is not None
    request = sh("trap '' HUP; id -u; sleep 1000", user="nobody", cwd="/tmp", pty=PtySize(24, 80), stdout_limit=None)
    process = await contained.client.start_process(request)
    assert (await process.stdout.read()).strip() == str(pwd.getpwnam("nobody").pw_uid).encode()
    await process.cancel()
    assert (await process.wait()).ended is Ended.CANCELLED


async def test_the_default_user_of_a_guest(bundle: GuestBundle, folder: Path) -> None:
    require(IS_ROOT, "needs root")
    async with connected_guest(bundle, folder, "--user", "nobody") as endpoint:
        assert endpoint.client is not None
        uid = str(pwd.getpwnam("nobody").pw_uid)
        assert await lines_of(endpoint.client, "id", "-u") == [uid]
        result = await endpoint.client.exec(ExecRequest(argv=("id", "-u"), user="root"))
        assert result.stdout.data == b"0\n"


async def test_commands_are_limited_by_the_descriptors_there_are(bundle: GuestBundle, folder: Path) -> None:
    """A guest that runs out of them could not even end what it runs, so it refuses before that."""
    soft_limit = 128
    limited = ("prlimit", f"--nofile={soft_limit}:{soft_limit}")
    require(shutil.which("prlimit") is not None, "needs prlimit(1)")
    async with connected_guest(bundle, folder, prefix=limited) as endpoint:
        client = endpoint.client
        assert client is not None
        outcomes = await asyncio.gather(
            *(client.start_process(sh("sleep 1000", stdin_stream=True)) for _ in range(40)), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert {outcome.code for outcome in refused if isinstance(outcome, SandboxOperationError)} == {"busy"}
        assert 1 <= len(outcomes) - len(refused) < soft_limit // 4
        for outcome in outcomes:
            if not isinstance(outcome, BaseException):
                await outcome.cancel()
                assert (await outcome.wait()).ended is Ended.CANCELLED
        assert (await client.exec(sh("echo back"))).stdout.data == b"back\n"


TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), None, None) != 0:  # PTRACE_SEIZE
    sys.exit(ctypes.get_errno())
print("on", flush=True)
sys.stdin.read()
"""


async def traced(pid: int) -> asyncio.subprocess.Process:
    """A tracer that never waits for what it traces: the exit of `pid` stays its alone while it lives."""
    tracer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", TRACER, str(pid)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tracer.stdout is not None
    attached = await tracer.stdout.readline() == b"on\n"
    if not attached:
        await tracer.wait()
    require(attached, "needs ptrace of another process")
    return tracer


async def test_a_traced_command_cannot_hold_the_guest(guest: Endpoint, client: GuestClient) -> None:
    """A tracer is told of the end first and may keep it: the guest must not wait for that in its loop."""
    process = await client.start_process(sh("read line; exit 5", stdin_stream=True))
    tracer = await traced(process.pid)
    await process.close_stdin()
    await until_dead(process.pid)
    await client.ping(limit_s=5)
    before = cpu_s(guest.pid)
    assert (await client.exec(sh("sleep 0.5; echo meanwhile"))).stdout.data == b"meanwhile\n"
    assert cpu_s(guest.pid) - before < 0.3
    await tracer.communicate(b"")
    assert (await process.wait()).exit_code == 5
