"""The values that cross the contract. Sizes are bytes, times are seconds unless the name says otherwise."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

CAPTURE_LIMIT = 1024 * 1024  # default bytes kept per output stream of a command
DRAIN_S = 5.0  # after a command ended: how long output still held open by a grandchild is awaited
GRACE_S = 5.0  # SIGTERM to SIGKILL when a command is timed out or cancelled


class IsolationTier(enum.Enum):
    """What stands between the sandboxed code and the host, weakest first."""

    PROCESS = "process"
    EMULATED_VM = "emulated-vm"
    HARDWARE_VM = "hardware-vm"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """What to create. `sandbox_id` names every host resource of the sandbox: 1 to 64 of `[A-Za-z0-9-]`."""

    sandbox_id: str
    vcpus: int = 1
    memory_mib: int = 512
    disk_mib: int = 2048
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """The guest reaches the API bridge through a Unix socket that the runner must listen on, at `path`."""

    path: str

    @property
    def guest_url(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """The guest reaches the bridge at `listen_ip:listen_port` on the host and is known by its `source_ip`."""

    listen_ip: str
    listen_port: int
    source_ip: str
    guest_url: str


ApiAccess = UnixSocket | SourceAddress


@dataclass(frozen=True, slots=True)
class PtySize:
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """A command to run in the guest.

    `argv` is executed as it is; with `shell` it is one element, the text for `/bin/sh -c`. The environment is clean:
    PATH, HOME, USER, LOGNAME, SHELL and LANG of the user plus `env`. `user` "" is the sandbox's default account.
    `stdin` is the whole input, or None with `stdin_stream` for input sent later, else the command reads /dev/null.
    A limit of None delivers the whole stream (`start_process`); a number keeps that many bytes and discards the rest.
    """

    argv: tuple[str, ...]
    shell: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    stdin: bytes = b""
    stdin_stream: bool = False
    pty: PtySize | None = None
    timeout_s: float | None = 60.0  # None: no limit
    grace_s: float = GRACE_S
    drain_s: float = DRAIN_S
    stdout_limit: int | None = CAPTURE_LIMIT
    stderr_limit: int | None = CAPTURE_LIMIT
    merge_stderr: bool = False  # stderr goes where stdout goes


class Ended(enum.Enum):
    """How a command ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"  # by a signal that we did not send
    TIMED_OUT = "timed_out"  # ended by us at its time limit
    CANCELLED = "cancelled"  # ended by us on request
    COULD_NOT_START = "could_not_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult:
    """One output stream of a finished command. `total` counts what the command wrote while it was read."""

    data: bytes = b""
    total: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """The end of a command. `exit_code` is set with EXITED, `signal` when a signal ended it, whoever sent it."""

    ended: Ended
    exit_code: int | None = None
    signal: int | None = None
    duration_s: float = 0.0
    user_cpu_s: float = 0.0
    system_cpu_s: float = 0.0
    max_rss_bytes: int = 0
    stdout: StreamResult = StreamResult()
    stderr: StreamResult = StreamResult()
    drain_expired: bool = False  # something still held an output pipe open when the drain limit was reached
    diagnostic: str = ""  # why it could not start

    @property
    def shell_code(self) -> int:
        """The code a shell would show: 124 at the time limit, 126/127 not startable, 128+n for signal n."""
        match self.ended:
            case Ended.EXITED:
                return self.exit_code or 0
            case Ended.TIMED_OUT:
                return 124
            case Ended.COULD_NOT_START:
                return self.exit_code or 127
            case _:
                return 128 + (self.signal or 0)


class FileKind(enum.Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """One file; `target` is the text of a symbolic link."""

    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """One name in a directory. The name is as the guest has it; bytes that are not UTF-8 are surrogate-escaped."""

    name: str
    stat: FileStat


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """What makes a restored guest itself again, in one step, before anything else runs in it.

    `token` replaces the boot token; empty strings and zeros leave the respective thing as it is.
    """

    realtime_ns: int
    entropy: bytes  # exactly 256 bytes
    token: bytes = b""
    timezone: str = ""
    hostname: str = ""
    machine_id: str = ""
    address: str = ""  # CIDR of eth0
    gateway: str = ""
    nameserver: str = ""
