"""What a backend implements: `SandboxFactory` makes sandboxes, `Sandbox` is one of them.

Every method is safe to cancel unless it says otherwise: a cancelled command is cancelled in the guest as well, a
cancelled file transfer leaves no partial file. Every operation ends at once with reason `crashed` when the sandbox
dies, never by time-out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import BinaryIO, Protocol

from vm0.sandbox.state import State
from vm0.sandbox.types import (
    ApiAccess,
    DirectoryEntry,
    ExecRequest,
    ExecResult,
    FileStat,
    IsolationTier,
    RestoreRequest,
    SandboxConfig,
)


class OutputStream(Protocol):
    """One output stream of a process. What is not read stays in the guest: at most one window is buffered here."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read(self) -> bytes:
        """The next piece, up to 64 KiB; b"" at the end. One reader at a time."""
        ...


class Process(Protocol):
    """A started command."""

    @property
    def pid(self) -> int:
        """The process id in the guest."""
        ...

    @property
    def stdout(self) -> OutputStream: ...

    @property
    def stderr(self) -> OutputStream: ...

    async def write_stdin(self, data: bytes) -> None:
        """Send input; waits while the command does not read. Needs `stdin_stream`."""
        ...

    async def close_stdin(self) -> None:
        """End of input; idempotent."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group; no effect on an ended one."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Change the terminal's size; needs `pty`."""
        ...

    async def cancel(self) -> None:
        """Ask the guest to end the command: SIGTERM, after the grace SIGKILL, everything it started. Idempotent."""
        ...

    async def wait(self) -> ExecResult:
        """The end of the command. Output that nobody reads must be read or limited first, or this waits for ever:
        set limits, or read both streams. May be called by several tasks."""
        ...


class Sandbox(Protocol):
    """One sandbox. `start` may be called once; `stop` and `kill` any number of times, in any state."""

    @property
    def sandbox_id(self) -> str: ...

    @property
    def state(self) -> State: ...

    @property
    def isolation(self) -> IsolationTier: ...

    @property
    def api_access(self) -> ApiAccess:
        """How its guest reaches the runner's API bridge."""
        ...

    def guest_path(self, path: str) -> str:
        """Where the absolute path `path` of the run's world is in this guest: itself in a VM, a folder of the
        sandbox's own in a backend without a file system of its own."""
        ...

    def program(self, name: str) -> tuple[str, ...]:
        """The argv prefix that starts a guest program: `guest-agent`, `guest-download`, `guest-mock-claude`."""
        ...

    async def start(self) -> None:
        """Boot or restore it and wait until the guest answers. Raises StartError; then it is STOPPED and nothing of
        it runs. Bounded by the backend's start limit."""
        ...

    async def stop(self) -> None:
        """Ask the guest to end, then force it. Bounded (about 10 s). Never raises for a sandbox that is gone."""
        ...

    async def kill(self) -> None:
        """End it by force, at once."""
        ...

    async def crashed(self) -> str:
        """Wait until the sandbox dies by itself and say why; for ever if it never does."""
        ...

    async def exec(self, request: ExecRequest) -> ExecResult:
        """Run a command to its end, with its captured output (up to the limits)."""
        ...

    async def start_process(self, request: ExecRequest) -> Process:
        """Start a command whose output is streamed. Raises SandboxOperationError(GUEST) when it cannot start."""
        ...

    async def write_file(
        self, path: str, data: bytes | BinaryIO, *, mode: int = 0o644, user: str = "", private: bool = False
    ) -> int:
        """Write a file of any size by a temporary name and an atomic rename; parents are created (0700 with
        `private`, which also makes the file 0600 and refuses symbolic links among the parents). Returns its size."""
        ...

    async def read_file(self, path: str, out: BinaryIO, *, limit: int | None = None) -> int:
        """Copy a regular file of the guest into `out` and return its size; more than `limit` bytes is an error."""
        ...

    async def stat(self, path: str, *, follow: bool = True) -> FileStat | None:
        """None when there is no such file."""
        ...

    async def list_directory(self, path: str) -> list[DirectoryEntry]:
        """The names in a directory, sorted; at most 100,000."""
        ...

    async def quiesce(self) -> int:
        """Refuse new work from now on and return how many commands still run; 0 means ready for a snapshot."""
        ...

    async def resume(self) -> None:
        """Accept work again."""
        ...

    async def restore(self, request: RestoreRequest) -> None:
        """Set clock, entropy, identity of a restored guest."""
        ...


class VirtualMachine(Sandbox, Protocol):
    """What a sandbox with a kernel of its own can do besides."""

    async def pause(self) -> None:
        """Stop its processors. Operations under way wait; the guest does not notice."""
        ...

    async def unpause(self) -> None:
        """Let it run on, with its clock set."""
        ...

    async def set_memory(self, memory_mib: int) -> None:
        """Ask the guest to get along with this much memory. A request: it gives back what it can, and not at once."""
        ...


class SandboxFactory(Protocol):
    """Makes sandboxes of one backend. Use as an async context manager: it owns what they share."""

    @property
    def backend(self) -> str:
        """`process`, `qemu` or `firecracker`."""
        ...

    @property
    def isolation(self) -> IsolationTier: ...

    async def __aenter__(self) -> SandboxFactory:
        """Check the host (BackendUnavailable with all that is missing), remove what a crashed owner left behind."""
        ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Destroy every sandbox that is left."""
        ...

    async def create(self, config: SandboxConfig) -> Sandbox:
        """Allocate a sandbox; nothing runs yet."""
        ...

    async def destroy(self, sandbox: Sandbox) -> None:
        """Kill it if it runs and remove all it had on the host. Idempotent, not interrupted by cancellation."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Facts for logs and `vm0 runner`: versions, accelerator, why this tier."""
        ...


class Forking(Protocol):
    """A factory whose running sandboxes can be multiplied."""

    async def fork(self, sandbox: Sandbox, configs: Sequence[SandboxConfig]) -> list[Sandbox]:
        """Start sandboxes that are as this one is now: its memory, its disk, its processes but those of commands.

        No command may run in it (SandboxOperationError STATE); it stands still meanwhile and runs on afterwards. All of
        the forks are started, or none is left.
        """
        ...
