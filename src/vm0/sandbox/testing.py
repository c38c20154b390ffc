"""The suite that every backend must pass. A backend's tests subclass `SandboxSuite` and give it a `factory` fixture::

class TestMyBackend(SandboxSuite):
    @pytest.fixture
    async def factory(self, tmp_path):
        async with MyFactory(tmp_path) as factory:
            yield factory
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import signal
import uuid
from collections.abc import AsyncIterator

import pytest

from vm0.sandbox import (
    Ended,
    ExecRequest,
    InvalidStateError,
    IsolationTier,
    PtySize,
    Reason,
    Sandbox,
    SandboxConfig,
    SandboxError,
    SandboxFactory,
    SandboxOperationError,
    State,
)


def sh(text: str, **options: object) -> ExecRequest:
    """A shell command."""
    return ExecRequest(argv=(text,), shell=True, **options)  # type: ignore[arg-type]  # the caller's keywords


def state_of(sandbox: Sandbox) -> State:
    """By a call, so that a type checker does not take one look at the property for all times."""
    return sandbox.state


def new_config() -> SandboxConfig:
    return SandboxConfig(sandbox_id=f"suite-{uuid.uuid4().hex[:12]}")


class SandboxSuite:
    """Life cycle, commands, files, quiescing, crashes: what the runner relies on."""

    @pytest.fixture
    async def sandbox(self, factory: SandboxFactory) -> AsyncIterator[Sandbox]:
        """A started sandbox."""
        sandbox = await factory.create(new_config())
        await sandbox.start()
        yield sandbox
        await factory.destroy(sandbox)

    async def test_life_cycle(self, factory: SandboxFactory) -> None:
        sandbox = await factory.create(new_config())
        assert state_of(sandbox) is State.CREATED
        with pytest.raises(InvalidStateError):
            await sandbox.exec(sh("true"))
        await sandbox.start()
        assert state_of(sandbox) is State.RUNNING
        assert sandbox.isolation is factory.isolation
        with pytest.raises(InvalidStateError):
            await sandbox.start()
        for _ in range(2):
            await sandbox.stop()
            assert state_of(sandbox) is State.STOPPED
        with pytest.raises(InvalidStateError):
            await sandbox.exec(sh("true"))
        for _ in range(2):
            await factory.destroy(sandbox)

    async def test_stop_and_destroy_without_start(self, factory: SandboxFactory) -> None:
        sandbox = await factory.create(new_config())
        await sandbox.kill()
        assert state_of(sandbox) is State.STOPPED
        await factory.destroy(sandbox)

    @pytest.mark.parametrize("sandbox_id", ["", "../escape", "a/b", "a" * 65, "ü", "a b"])
    async def test_ids_that_are_no_names_are_refused(self, factory: SandboxFactory, sandbox_id: str) -> None:
        with pytest.raises(SandboxError, match="sandbox id"):
            await factory.create(SandboxConfig(sandbox_id=sandbox_id))

    async def test_an_id_is_used_once(self, factory: SandboxFactory) -> None:
        config = new_config()
        first = await factory.create(config)
        with pytest.raises(SandboxError, match="exists"):
            await factory.create(config)
        await factory.destroy(first)
        await factory.destroy(await factory.create(config))

    async def test_exec_reports_streams_and_code(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(sh("echo out; echo err >&2; exit 7"))
        assert (result.ended, result.exit_code, result.shell_code) == (Ended.EXITED, 7, 7)
        assert (result.stdout.data, result.stderr.data) == (b"out\n", b"err\n")
        assert result.duration_s > 0 and result.max_rss_bytes > 0

    async def test_exec_passes_arguments_environment_directory_and_input(self, sandbox: Sandbox) -> None:
        folder = sandbox.guest_path("/home/user")
        request = ExecRequest(
            argv=("sh", "-c", 'printf "%s|%s|%s|" "$1" "$NAME" "$PWD"; cat', "sh", "a b'\"$x"),
            env={"NAME": "v=1\n2"},
            cwd=folder,
            stdin=b"\x00\xffin",
        )
        result = await sandbox.exec(request)
        assert result.stdout.data == f"a b'\"$x|v=1\n2|{folder}|".encode() + b"\x00\xffin"

    async def test_exec_starts_with_a_clean_environment(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(ExecRequest(argv=("env",)))
        names = {line.split("=")[0] for line in result.stdout.data.decode().splitlines()}
        assert names <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "SHLVL", "_"}

    async def test_exec_of_what_is_not_there(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(ExecRequest(argv=("/no/such/program",)))
        assert (result.ended, result.shell_code) == (Ended.COULD_NOT_START, 127)
        assert "no/such/program" in result.diagnostic
        with pytest.raises(SandboxOperationError) as caught:
            await sandbox.start_process(ExecRequest(argv=("/no/such/program",)))
        assert (caught.value.reason, caught.value.code) == (Reason.GUEST, "not_found")

    async def test_exec_as_an_unknown_user(self, sandbox: Sandbox) -> None:
        with pytest.raises(SandboxOperationError) as caught:
            await sandbox.exec(ExecRequest(argv=("true",), user="nobody-has-this-name"))
        assert caught.value.code == "not_found"

    async def test_exec_killed_by_a_signal(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(sh("kill -SEGV $$"))
        assert (result.ended, result.signal) == (Ended.SIGNALLED, signal.SIGSEGV)
        assert result.shell_code == 128 + signal.SIGSEGV

    async def test_exec_time_limit_ends_everything_it_started(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(sh("sleep 1000 & echo $!; wait", timeout_s=0.3, grace_s=1.0))
        assert (result.ended, result.shell_code) == (Ended.TIMED_OUT, 124)
        child = int(result.stdout.data)
        probe = await sandbox.exec(sh(f"kill -0 {child} 2>/dev/null && cat /proc/{child}/stat || echo gone"))
        assert b"gone" in probe.stdout.data or b" Z " in probe.stdout.data

    async def test_exec_time_limit_is_enforced_on_who_ignores_sigterm(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(sh("trap '' TERM; while :; do sleep 0.05; done", timeout_s=0.2, grace_s=0.2))
        assert (result.ended, result.signal) == (Ended.TIMED_OUT, signal.SIGKILL)

    async def test_exec_output_over_the_limit_is_cut_and_said_so(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(sh("head -c 3000000 /dev/zero; echo end >&2", stdout_limit=1000))
        assert (len(result.stdout.data), result.stdout.total, result.stdout.truncated) == (1000, 3_000_000, True)
        assert (result.stderr.data, result.stderr.truncated) == (b"end\n", False)

    async def test_exec_many_at_once(self, sandbox: Sandbox) -> None:
        results = await asyncio.gather(*(sandbox.exec(sh(f"sleep 0.0{n % 7}; echo {n}")) for n in range(40)))
        assert [int(result.stdout.data) for result in results] == list(range(40))

    async def test_process_streams_input_and_output(self, sandbox: Sandbox) -> None:
        process = await sandbox.start_process(
            ExecRequest(argv=("cat",), stdin_stream=True, timeout_s=30, stdout_limit=None)
        )
        assert process.pid > 0
        data = os.urandom(1_500_000)

        async def feed() -> None:
            await process.write_stdin(data)
            await process.close_stdin()

        feeding = asyncio.create_task(feed())
        received = b"".join([piece async for piece in process.stdout])
        await feeding
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        assert (await process.wait()).exit_code == 0

    async def test_process_signal_and_cancel(self, sandbox: Sandbox) -> None:
        trap = "trap 'echo got; exit 3' USR1; echo on; while :; do sleep 0.02; done"
        process = await sandbox.start_process(sh(trap, stdout_limit=None))
        assert await process.stdout.read() == b"on\n"
        await process.signal(signal.SIGUSR1)
        assert (await process.wait()).exit_code == 3
        process = await sandbox.start_process(sh("sleep 1000"))
        await process.cancel()
        await process.cancel()
        result = await process.wait()
        assert (result.ended, result.signal) == (Ended.CANCELLED, signal.SIGTERM)

    async def test_process_on_a_terminal(self, sandbox: Sandbox) -> None:
        request = sh(
            "stty size; read line; echo got $line; stty size; test -t 1 && echo tty",
            pty=PtySize(24, 80),
            stdin_stream=True,
            stdout_limit=None,
        )
        process = await sandbox.start_process(request)
        seen = b""
        while b"24 80" not in seen:
            seen += await process.stdout.read()
        await process.resize(50, 132)
        await process.write_stdin(b"hello\n")
        async for piece in process.stdout:
            seen += piece
        assert (await process.wait()).exit_code == 0
        assert b"got hello" in seen and b"50 132" in seen and b"tty" in seen

    async def test_files_there_and_back(self, sandbox: Sandbox) -> None:
        data = os.urandom(3_000_001)
        path = sandbox.guest_path("/home/user/deep/er/file.bin")
        assert await sandbox.write_file(path, io.BytesIO(data), mode=0o640) == len(data)
        found = await sandbox.stat(path)
        assert found is not None and (found.size, found.mode) == (len(data), 0o640)
        out = io.BytesIO()
        assert await sandbox.read_file(path, out) == len(data)
        assert out.getvalue() == data
        names = [entry.name for entry in await sandbox.list_directory(sandbox.guest_path("/home/user/deep/er"))]
        assert names == ["file.bin"]  # no temporary file is left

    async def test_a_private_file_is_private(self, sandbox: Sandbox) -> None:
        path = sandbox.guest_path("/tmp/run/secret.json")
        await sandbox.write_file(path, b"s", private=True)
        file, folder = await sandbox.stat(path), await sandbox.stat(os.path.dirname(path))
        assert file is not None and folder is not None
        assert (file.mode, folder.mode) == (0o600, 0o700)

    async def test_files_that_cannot_be(self, sandbox: Sandbox) -> None:
        missing = sandbox.guest_path("/home/user/none")
        assert await sandbox.stat(missing) is None
        cases = [
            (sandbox.read_file(missing, io.BytesIO()), "not_found"),
            (sandbox.read_file("/dev/null", io.BytesIO()), "not_a_file"),
            (sandbox.read_file("/proc", io.BytesIO()), "not_a_file"),
            (sandbox.write_file("relative", b""), "invalid"),
            (sandbox.read_file("relative", io.BytesIO()), "invalid"),
            (sandbox.stat("relative"), "invalid"),
            (sandbox.list_directory("relative"), "invalid"),
            (sandbox.list_directory(missing), "not_found"),
        ]
        for operation, code in cases:
            with pytest.raises(SandboxOperationError) as caught:
                await operation
            assert (caught.value.reason, caught.value.code) == (Reason.GUEST, code)

    async def test_read_over_the_limit(self, sandbox: Sandbox) -> None:
        path = sandbox.guest_path("/home/user/file")
        await sandbox.write_file(path, bytes(1001))
        with pytest.raises(SandboxOperationError) as caught:
            await sandbox.read_file(path, io.BytesIO(), limit=1000)
        assert caught.value.code == "too_large"

    async def test_quiesce_refuses_work_until_resumed(self, sandbox: Sandbox) -> None:
        process = await sandbox.start_process(sh("sleep 1000"))
        assert await sandbox.quiesce() == 1
        assert state_of(sandbox) is State.QUIESCED
        with pytest.raises(SandboxOperationError) as caught:
            await sandbox.exec(sh("true"))
        assert caught.value.code == "quiesced"
        await process.cancel()
        await process.wait()
        assert await sandbox.quiesce() == 0
        await sandbox.resume()
        assert (await sandbox.exec(sh("true"))).exit_code == 0

    async def test_stop_ends_running_operations(self, sandbox: Sandbox) -> None:
        process = await sandbox.start_process(sh("sleep 1000", timeout_s=None))
        waiting = asyncio.create_task(process.wait())
        await sandbox.stop()
        with contextlib.suppress(SandboxOperationError):  # told of the end in time, or of the loss of the link
            assert (await waiting).ended is Ended.CANCELLED

    async def test_a_cancelled_call_ends_the_command_and_nothing_else(self, sandbox: Sandbox) -> None:
        marker = sandbox.guest_path("/tmp/pid")
        waiting = asyncio.create_task(sandbox.exec(sh(f"echo $$ > {marker}; exec sleep 1000", timeout_s=None)))
        out = io.BytesIO()
        while not out.getvalue().endswith(b"\n"):
            out = io.BytesIO()
            with contextlib.suppress(SandboxOperationError):
                await sandbox.read_file(marker, out)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gone = await sandbox.exec(
            sh(f"while kill -0 {int(out.getvalue())}; do sleep 0.02; done 2>/dev/null", timeout_s=9)
        )
        assert gone.ended is Ended.EXITED

    async def test_every_operation_ends_at_once_when_the_guest_dies(self, sandbox: Sandbox) -> None:
        """Kills the guest endpoint from inside: the parent of a command is the endpoint."""
        user = "" if sandbox.isolation is IsolationTier.PROCESS else "root"  # the endpoint is root's in a VM
        waiting = asyncio.create_task(sandbox.exec(sh("kill -9 $PPID; sleep 1000", timeout_s=None, user=user)))
        async with asyncio.timeout(10):
            why = await sandbox.crashed()
            with pytest.raises(SandboxOperationError) as caught:
                await waiting
        assert caught.value.reason is Reason.CRASHED and why
        assert state_of(sandbox) is State.CRASHED
        with pytest.raises(SandboxOperationError) as caught:
            await sandbox.exec(sh("true"))
        assert caught.value.reason is Reason.CRASHED
        await sandbox.stop()
        assert state_of(sandbox) is State.STOPPED

    async def test_leaving_the_factory_destroys_what_is_left(self, factory: SandboxFactory) -> None:
        sandbox = await factory.create(new_config())
        await sandbox.start()
        await factory.__aexit__(None, None, None)
        assert state_of(sandbox) is State.STOPPED
        await factory.__aenter__()
