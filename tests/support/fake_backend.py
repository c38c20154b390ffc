"""A sandbox backend in memory that keeps the contract: states, time limits, bounded output, crashes, cancellation.

Programs of the guest are coroutines, `async def agent(call: Call) -> int`; what they return is the exit code. Faults
are put on operations by name: `factory.fail["start"] = StartError(...)`, `factory.hang.add("write_file")`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import BinaryIO, cast

from vm0.sandbox import (
    ApiAccess,
    DirectoryEntry,
    Ended,
    ExecRequest,
    ExecResult,
    FileKind,
    FileStat,
    IsolationTier,
    Process,
    Reason,
    RestoreRequest,
    Sandbox,
    SandboxConfig,
    SandboxOperationError,
    State,
    StreamResult,
    UnixSocket,
    next_state,
)

WINDOW_PIECES = 4  # unread output that a stream holds before its writer waits
SIGKILL = 9


class Signalled(Exception):
    """Raised by a program: a signal that nobody of us sent ends it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Call:
    """One execution of a program."""

    def __init__(self, sandbox: FakeSandbox, request: ExecRequest) -> None:
        self.sandbox, self.request = sandbox, request
        self.terminated = asyncio.Event()  # SIGTERM
        self.stdout = FakeStream(request.stdout_limit)

    @property
    def env(self) -> Mapping[str, str]:
        return self.request.env

    async def write(self, data: bytes) -> None:
        await self.stdout.feed(data)

    def write_outcome(self, **fields: object) -> None:
        """outcome.json as guest-agent leaves it."""
        path = f"{self.env['VM0_RUNTIME_DIR']}/outcome.json"
        self.sandbox.files[path] = json.dumps({"eventCount": 0, **fields}).encode()


Program = Callable[[Call], Awaitable[int]]


async def good_agent(call: Call) -> int:
    call.sandbox.files.pop(call.env["VM0_PAYLOAD_FILE"])
    await call.write(b"agent output\n")
    call.write_outcome(kind="exited", exitCode=0, eventCount=3)
    return 0


async def good_download(call: Call) -> int:
    json.loads(call.sandbox.files[call.request.argv[-1]])
    return 0


class FakeStream:
    """Bounded like the real one: without a limit, whoever writes waits for the reader."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._kept, self._total = limit, bytearray(), 0
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(WINDOW_PIECES if limit is None else 0)
        self._closed = False

    async def feed(self, data: bytes) -> None:
        self._total += len(data)
        if self._limit is None:
            await self._pieces.put(data)
        else:
            self._kept += data[: max(0, self._limit - len(self._kept))]

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(asyncio.QueueFull):
            self._pieces.put_nowait(b"")

    async def read(self) -> bytes:
        if self._closed and self._pieces.empty():
            return b""
        return await self._pieces.get()

    async def _iterate(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    def result(self) -> StreamResult:
        return StreamResult(data=bytes(self._kept), total=self._total, truncated=self._total > len(self._kept))


class FakeProcess:
    """Runs one program; ended by its return, its time limit, `cancel`, or the sandbox's death."""

    def __init__(self, sandbox: FakeSandbox, request: ExecRequest, program: Program) -> None:
        self.call = Call(sandbox, request)
        self.stdout, self.stderr = self.call.stdout, FakeStream(0)
        self.pid = 100 + len(sandbox.processes)
        self._sandbox, self._request = sandbox, request
        self._program = asyncio.create_task(self._run(program), name=f"fake-{request.argv}")
        self._cancelled = asyncio.Event()
        self._ended = asyncio.create_task(self._end(), name="fake-end")

    async def _run(self, program: Program) -> int:
        await self._sandbox.factory.note(f"running {self._request.argv[2]}")
        return await program(self.call)

    async def _end(self) -> ExecResult:
        cancelled = asyncio.create_task(self._cancelled.wait())
        death = asyncio.create_task(self._sandbox.death.wait())
        try:
            done = {self._program, cancelled, death}
            limit_s = self._request.timeout_s if self._sandbox.factory.enforces_timeout else None
            await asyncio.wait(done, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            why = None if self._program.done() else (Ended.CANCELLED if cancelled.done() else Ended.TIMED_OUT)
            if why is not None and not death.done():
                self.call.terminated.set()
                await asyncio.wait(
                    {self._program, death}, timeout=self._request.grace_s, return_when=asyncio.FIRST_COMPLETED
                )
            if death.done() and not self._program.done():
                raise SandboxOperationError("exec", Reason.CRASHED, self._sandbox.death_text)
            return await self._result(why)
        finally:
            for task in (cancelled, death, self._program):
                task.cancel()
            await asyncio.gather(cancelled, death, self._program, return_exceptions=True)
            self.stdout.close()
            self.stderr.close()

    async def _result(self, why: Ended | None) -> ExecResult:
        ended, code, signal = why, None, None
        if not self._program.done():
            signal = SIGKILL
        elif isinstance(exc := self._program.exception(), Signalled):
            ended, signal = ended or Ended.SIGNALLED, exc.number
        elif exc is not None:
            raise exc
        else:
            ended, code = ended or Ended.EXITED, self._program.result()
        return ExecResult(
            ended=ended or Ended.EXITED,
            exit_code=code if ended is Ended.EXITED else None,
            signal=signal,
            stdout=self.stdout.result(),
        )

    async def write_stdin(self, data: bytes) -> None:
        raise SandboxOperationError("stdin", Reason.STATE, "no stdin")

    async def close_stdin(self) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def cancel(self) -> None:
        await self._sandbox.pass_("cancel")
        self._cancelled.set()

    async def wait(self) -> ExecResult:
        return await asyncio.shield(self._ended)

    async def abandon(self) -> None:
        """After the sandbox's end: wait until nothing of it runs."""
        await asyncio.wait({self._ended})
        if not self._ended.cancelled():
            self._ended.exception()


class FakeSandbox:
    """Paths of the run's world are below `/guest/<id>`, so that a path that was not mapped is noticed."""

    def __init__(self, factory: FakeFactory, config: SandboxConfig) -> None:
        self.factory, self.config = factory, config
        self.sandbox_id = config.sandbox_id
        self.state = State.CREATED
        self.files: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.processes: list[FakeProcess] = []
        self.death, self.death_text = asyncio.Event(), ""

    @property
    def isolation(self) -> IsolationTier:
        return self.factory.isolation

    @property
    def api_access(self) -> ApiAccess:
        return UnixSocket(str(self.factory.sockets / f"{self.sandbox_id}.sock"))

    def guest_path(self, path: str) -> str:
        return f"/guest/{self.sandbox_id}{path}"

    def program(self, name: str) -> tuple[str, ...]:
        return ("python3", "guest.pyz", name)

    async def pass_(self, operation: str) -> None:
        """Where faults happen: record, hang or fail."""
        await self.factory.note(operation)
        if operation in self.factory.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if (exc := self.factory.fail.get(operation)) is not None:
            raise exc

    async def _operate(self, operation: str) -> None:
        if self.death.is_set():
            raise SandboxOperationError(operation, Reason.CRASHED, self.death_text)
        self.state = next_state(self.state, "operate")
        await self.pass_(operation)

    async def start(self) -> None:
        state = next_state(self.state, "start")
        try:
            await self.pass_("start")
        except BaseException:
            self.state = State.STOPPED
            raise
        self.state = state

    async def stop(self) -> None:
        await self.kill()

    async def kill(self) -> None:
        await self.pass_("kill")
        await self._die("killed", State.STOPPED)

    async def crash(self, text: str) -> None:
        """A test's way to end it like a dying VMM."""
        await self._die(text, next_state(self.state, "crash"))

    async def _die(self, text: str, state: State) -> None:
        self.state = state
        self.death_text = self.death_text or text
        self.death.set()
        for process in self.processes:
            await process.abandon()

    async def crashed(self) -> str:
        await self.death.wait()
        return self.death_text

    async def exec(self, request: ExecRequest) -> ExecResult:
        process = await self._start(request, "exec")
        try:
            return await process.wait()
        except asyncio.CancelledError:
            await process.cancel()
            raise

    async def start_process(self, request: ExecRequest) -> Process:
        return await self._start(request, "start_process")

    async def _start(self, request: ExecRequest, operation: str) -> FakeProcess:
        await self._operate(operation)
        name = next((part for part in request.argv if part in self.factory.programs), None)
        if name is None:
            raise SandboxOperationError(operation, Reason.GUEST, f"no program {request.argv}", code="not_found")
        process = FakeProcess(self, request, self.factory.programs[name])
        self.processes.append(process)
        return process

    async def write_file(
        self, path: str, data: bytes | BinaryIO, *, mode: int = 0o644, user: str = "", private: bool = False
    ) -> int:
        await self._operate("write_file")
        content = data if isinstance(data, bytes) else data.read()
        self.files[path] = content
        if private or mode == 0o600:
            self.private.add(path)
        self.factory.written[path.removeprefix(f"/guest/{self.sandbox_id}")] = content
        return len(content)

    async def read_file(self, path: str, out: BinaryIO, *, limit: int | None = None) -> int:
        await self._operate("read_file")
        if path not in self.files:
            raise SandboxOperationError("read_file", Reason.GUEST, f"{path}: no such file", code="not_found")
        if limit is not None and len(self.files[path]) > limit:
            raise SandboxOperationError("read_file", Reason.GUEST, f"{path}: larger than {limit}", code="too_large")
        out.write(self.files[path])
        return len(self.files[path])

    async def stat(self, path: str, *, follow: bool = True) -> FileStat | None:
        await self._operate("stat")
        if path not in self.files:
            return None
        return FileStat(kind=FileKind.FILE, mode=0o600, uid=0, gid=0, size=len(self.files[path]), mtime_ns=0)

    async def list_directory(self, path: str) -> list[DirectoryEntry]:
        await self._operate("list_directory")
        return []

    async def quiesce(self) -> int:
        self.state = next_state(self.state, "quiesce")
        return 0

    async def resume(self) -> None:
        self.state = next_state(self.state, "resume")

    async def restore(self, request: RestoreRequest) -> None:
        await self._operate("restore")


class FakeFactory:
    """Counts what it made and what is left."""

    backend = "fake"

    def __init__(self, sockets: pathlib.Path, isolation: IsolationTier = IsolationTier.PROCESS) -> None:
        self.sockets, self.isolation = sockets, isolation
        self.programs: dict[str, Program] = {"guest-agent": good_agent, "guest-download": good_download}
        self.fail: dict[str, Exception] = {}
        self.hang: set[str] = set()
        self.operations: list[str] = []
        self.written: dict[str, bytes] = {}  # by path in the run's own world
        self.sandboxes: list[FakeSandbox] = []
        self.live: dict[str, FakeSandbox] = {}
        self.changed = asyncio.Condition()
        self.enforces_timeout = True  # False: a guest that ignores the time limit of a command

    async def __aenter__(self) -> FakeFactory:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.fail.clear()
        self.hang.clear()
        for sandbox in list(self.live.values()):
            await self.destroy(sandbox)

    async def create(self, config: SandboxConfig) -> Sandbox:
        sandbox = FakeSandbox(self, config)
        await sandbox.pass_("create")
        if config.sandbox_id in self.live:
            raise SandboxOperationError("create", Reason.HOST, f"sandbox {config.sandbox_id} exists")
        self.sandboxes.append(sandbox)
        self.live[config.sandbox_id] = sandbox
        return sandbox

    async def destroy(self, sandbox: Sandbox) -> None:
        fake = cast(FakeSandbox, sandbox)
        await fake.pass_("destroy")
        await fake._die("destroyed", State.STOPPED)
        self.live.pop(fake.sandbox_id, None)

    def describe(self) -> Mapping[str, str]:
        return {}

    async def note(self, operation: str) -> None:
        async with self.changed:
            self.operations.append(operation)
            self.changed.notify_all()

    async def reached(self, operation: str) -> None:
        """Wait until this operation was begun; `running guest-agent` is the begin of a program."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: operation in self.operations)
