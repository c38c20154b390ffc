"""The table of messages: what host and guest say to each other. `docs/reference/wire.md` is generated from it.

Version 1. Numbers are never reused; a retired one stays listed as such. `seq` of the frame names the operation: the
host picks it (1 to 2^32-1, not in use), every message of that operation carries it in both directions, and the
operation ends with exactly one final message from the guest: *result*, *written*, the last *data* of a read file,
*file stat*, *entries* with `last`, *quiesced*, *done*, *pong* or *error*. *ready* has seq 0.

Flow control: each data stream of an operation has a window. The sender may have at most that many bytes outstanding;
*credit* from the receiver gives back what it has consumed. So a reader that does not read stops that one stream at
one window of memory, and nothing else.
"""

from __future__ import annotations

from vm0.vsock_proto.codec import Message, blob, fixed, message, rest, sequence, sint, text, uint
from vm0.vsock_proto.errors import MAX_TEXT, RemoteProtocolError

VERSION = 1
PORT = 1000  # AF_VSOCK port on the host (CID 2), and the name `<socket>_1000` of Firecracker's socket
MAX_BODY = 1024 * 1024  # type + seq + payload; small, so that no frame holds the link for long even on a slow one
MAX_CHUNK = 256 * 1024  # of output, stdin and file data in one frame
OUTPUT_WINDOW = 256 * 1024  # initial credit of stdin, stdout and stderr, each
FILE_WINDOW = 4 * 1024 * 1024  # initial credit of a file transfer

STDIN, STDOUT, STDERR, FILE = 0, 1, 2, 3  # streams
UNLIMITED = 2**64 - 1

# Exec.flags
SHELL, PTY, STDIN_STREAM, MERGE_STDERR = 1, 2, 4, 8
# Exec: how it ended (Result.ended)
EXITED, SIGNALLED, TIMED_OUT, CANCELLED, COULD_NOT_START = 0, 1, 2, 3, 4
# Result.flags
STDOUT_TRUNCATED, STDERR_TRUNCATED, DRAIN_EXPIRED = 1, 2, 4
# WriteFile.flags
PRIVATE = 1
# Stdin.flags, Data.flags, Entries.flags
LAST = 1
# kind in a stat
KIND_FILE, KIND_DIRECTORY, KIND_SYMLINK, KIND_OTHER = 0, 1, 2, 3

_PATH = text(16, 4096, bytes_names=True)
_NAME = text(16, 64 * 1024 - 1)
_STAT = (uint(8), uint(32), uint(32), uint(32), uint(64), uint(64), _PATH)  # kind mode uid gid size mtime_ns target


@message(0x00, "guest")
class Ready(Message):
    """First message on every connection. `token` is the secret that the host gave this boot; `build` names the guest
    code, so that a host can refuse one that does not match."""

    version: int = uint(16)
    boot_id: bytes = fixed(16)
    token: bytes = blob(8, 64)
    build: str = text(8, 128)


@message(0x01, "host")
class Ping(Message):
    """Answered at once with *pong*, whatever else is going on."""


@message(0x02, "guest")
class Pong(Message):
    """The guest's loop is alive."""


@message(0x03, "host")
class Exec(Message):
    """Run a command. Answered by *started*, *output*s and one *result*, or by *error* (`quiesced`, `busy`).

    flags: 1 `argv` is one text for /bin/sh -c · 2 on a terminal of `rows` × `columns` · 4 stdin comes by *stdin* ·
    8 stderr goes into stdout. `timeout_ms` 0: no limit. `*_limit`: bytes to deliver of the stream; the rest is read
    and thrown away. Without flag 4, `stdin` is the whole input (empty: /dev/null).
    """

    flags: int = uint(8)
    argv: tuple[str, ...] = sequence(65536, text(32, MAX_BODY, bytes_names=True))
    env: tuple[tuple[str, str], ...] = sequence(4096, _NAME, text(32, MAX_BODY, bytes_names=True))
    cwd: str = text(16, 4096, bytes_names=True)
    user: str = text(8, 255)
    stdin: bytes = blob(32, 512 * 1024)
    rows: int = uint(16)
    columns: int = uint(16)
    timeout_ms: int = uint(64)
    grace_ms: int = uint(32)
    drain_ms: int = uint(32)
    stdout_limit: int = uint(64)
    stderr_limit: int = uint(64)


@message(0x04, "guest")
class Started(Message):
    """The command runs; before any of its output."""

    pid: int = uint(32)


@message(0x05, "guest")
class Output(Message):
    """A piece of stdout (1) or stderr (2)."""

    stream: int = uint(8)
    data: bytes = rest()


@message(0x06, "host")
class Stdin(Message):
    """A piece of input; flags: 1 it is the last."""

    flags: int = uint(8)
    data: bytes = rest()


@message(0x07, "both")
class Credit(Message):
    """`amount` bytes of that stream were consumed and may be sent anew. For an ended operation: ignored."""

    stream: int = uint(8)
    amount: int = uint(32)


@message(0x08, "host")
class Signal(Message):
    """Send a signal to the command's process group. For an ended operation: ignored."""

    number: int = uint(8)


@message(0x09, "host")
class Resize(Message):
    """New size of the command's terminal. For an ended operation: ignored."""

    rows: int = uint(16)
    columns: int = uint(16)


@message(0x0A, "host")
class Cancel(Message):
    """End the operation: a command by SIGTERM and, after its grace, SIGKILL; a file transfer at once (*error*
    `cancelled`, no partial file). For an ended operation: ignored."""


@message(0x0B, "guest")
class Result(Message):
    """The end of a command, after all of its output.

    ended: 0 exited · 1 signalled · 2 timed out · 3 cancelled · 4 could not start. `exit_code` -1 and `signal` 0 where
    there is none. Totals count what was read of each stream, delivered or not. flags: 1 stdout and 2 stderr were
    truncated · 4 a stream was still open at the drain limit.
    """

    ended: int = uint(8)
    exit_code: int = sint(32)
    signal: int = uint(8)
    duration_us: int = uint(64)
    user_cpu_us: int = uint(64)
    system_cpu_us: int = uint(64)
    max_rss_kib: int = uint(64)
    stdout_total: int = uint(64)
    stderr_total: int = uint(64)
    flags: int = uint(8)
    diagnostic: str = text(16, MAX_TEXT)


@message(0x0C, "host")
class WriteFile(Message):
    """Write a regular file: *data* follows, the last with flag 1; answered by *written* or *error*.

    It appears under its name only when complete. Missing parents are made. flags: 1 private: parents are made with
    0700, the file is 0600 whatever `mode` says, and no parent may be a symbolic link. `user` "": the guest's own.
    """

    path: str = text(16, 4096, bytes_names=True)
    flags: int = uint(8)
    mode: int = uint(32)
    user: str = text(8, 255)


@message(0x0D, "both")
class Data(Message):
    """A piece of a file, in either direction; flags: 1 it is the last."""

    flags: int = uint(8)
    data: bytes | memoryview = rest()

    @classmethod
    def decode_view(cls, payload: memoryview) -> Data:
        """`decode` with `data` as a view of the payload: file transfers are the one place where a copy counts."""
        if not payload:
            raise RemoteProtocolError("payload ends 1 bytes early")
        return cls(payload[0], payload[1:])


@message(0x0E, "guest")
class Written(Message):
    """The file is in place."""

    size: int = uint(64)


@message(0x0F, "host")
class ReadFile(Message):
    """Read a regular file: answered by *file stat* and *data*, the last with flag 1. Over `limit` bytes: *error*."""

    path: str = text(16, 4096, bytes_names=True)
    limit: int = uint(64)


@message(0x10, "host")
class Stat(Message):
    """Ask for one file; `follow` 0: of a symbolic link itself."""

    path: str = text(16, 4096, bytes_names=True)
    follow: int = uint(8)


@message(0x11, "guest")
class FileStat(Message):
    """kind (0 file, 1 directory, 2 symbolic link, 3 other), mode, uid, gid, size, mtime in ns, target of a link."""

    kind: int = uint(8)
    mode: int = uint(32)
    uid: int = uint(32)
    gid: int = uint(32)
    size: int = uint(64)
    mtime_ns: int = uint(64)
    target: str = text(16, 4096, bytes_names=True)


@message(0x12, "host")
class List(Message):
    """Ask for the names in a directory; more than `limit`: *error* `too_large`."""

    path: str = text(16, 4096, bytes_names=True)
    limit: int = uint(32)


@message(0x13, "guest")
class Entries(Message):
    """Some names, each with its stat; flags: 1 these are the last."""

    flags: int = uint(8)
    entries: tuple[tuple[str, int, int, int, int, int, int, str], ...] = sequence(4096, _PATH, *_STAT)


@message(0x14, "host")
class Quiesce(Message):
    """Refuse new work from now on (ping, resume, restore, shutdown and this stay allowed); answered by *quiesced*."""


@message(0x15, "guest")
class Quiesced(Message):
    """`running` operations go on; at 0 the guest is ready for a snapshot. Ask again or *resume*."""

    running: int = uint(32)


@message(0x16, "host")
class Resume(Message):
    """Accept work again; answered by *done*."""


@message(0x17, "host")
class Restore(Message):
    """Make a restored guest itself, all in one step, before any work; empty fields leave the thing as it is.

    Clock, then entropy into the kernel's pool and a reseed, then time zone, host name, machine id and network of eth0;
    `token` is what the next *ready* will carry. Answered by *done* or *error*.
    """

    realtime_ns: int = uint(64)
    entropy: bytes = fixed(256)
    token: bytes = blob(8, 64)
    timezone: str = text(8, 255)
    hostname: str = text(8, 64)
    machine_id: str = text(8, 32)
    address: str = text(8, 64)
    gateway: str = text(8, 64)
    nameserver: str = text(8, 64)


@message(0x18, "host")
class Shutdown(Message):
    """End everything that runs; answered by *done* when nothing does. The guest stays connected until the host
    closes the link, and does not come back."""


@message(0x19, "guest")
class Done(Message):
    """The request is carried out."""


@message(0xFF, "guest")
class Error(Message):
    """The operation failed or was refused; its final message. `reason` is of a closed set (see the table)."""

    reason: int = uint(8)
    text: str = text(16, MAX_TEXT)
