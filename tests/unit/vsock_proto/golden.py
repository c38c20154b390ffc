"""One example of every message, and the bytes it has on the wire (golden.json).

The bytes are a promise to guests that are already built. If a change of them is meant, raise `messages.VERSION` and
write the file anew:

    .venv/bin/python -m tests.unit.vsock_proto.golden
"""

from __future__ import annotations

import json
from pathlib import Path

from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.connection import Connection

FILE = Path(__file__).with_name("golden.json")

_STAT = (m.KIND_SYMLINK, 0o777, 0, 1000, 4, 1_700_000_000_123_456_789, "ziel-ü")
EXAMPLES: tuple[tuple[int, Message], ...] = (
    (0, m.Ready(m.VERSION, bytes(range(16)), b"token", "0123456789abcdef")),
    (1, m.Ping()),
    (2, m.Pong()),
    (
        3,
        m.Exec(
            flags=m.SHELL | m.PTY | m.STDIN_STREAM | m.MERGE_STDERR,
            argv=("echo ü", "b\udcff"),
            env=(("NAME", "wert"), ("ÄÖ", "")),
            cwd="/home/user",
            user="user",
            stdin=b"\x00\xff",
            rows=24,
            columns=80,
            timeout_ms=2**40,
            grace_ms=5000,
            drain_ms=250,
            stdout_limit=m.UNLIMITED,
            stderr_limit=1024,
        ),
    ),
    (4, m.Started(12345)),
    (5, m.Output(m.STDERR, b"text\n")),
    (6, m.Stdin(m.LAST, b"input")),
    (7, m.Credit(m.FILE, 1_048_576)),
    (8, m.Signal(15)),
    (9, m.Resize(50, 132)),
    (10, m.Cancel()),
    (
        11,
        m.Result(
            ended=m.SIGNALLED,
            exit_code=-1,
            signal=9,
            duration_us=1_500_000,
            user_cpu_us=20,
            system_cpu_us=30,
            max_rss_kib=4096,
            stdout_total=2**33,
            stderr_total=7,
            flags=m.STDOUT_TRUNCATED | m.DRAIN_EXPIRED,
            diagnostic="warum",
        ),
    ),
    (12, m.WriteFile("/tmp/a\udcfe", m.PRIVATE, 0o640, "user")),
    (13, m.Data(m.LAST, b"piece")),
    (14, m.Written(2**40)),
    (15, m.ReadFile("/etc/hostname", m.UNLIMITED)),
    (16, m.Stat("/tmp", 1)),
    (17, m.FileStat(*_STAT)),
    (18, m.List("/", 100_000)),
    (19, m.Entries(m.LAST, (("name", *_STAT), ("b\udcff", m.KIND_FILE, 0o644, 1, 2, 3, 4, "")))),
    (20, m.Quiesce()),
    (21, m.Quiesced(3)),
    (22, m.Resume()),
    (
        23,
        m.Restore(
            realtime_ns=1_700_000_000_000_000_000,
            entropy=bytes(range(256)),
            token=b"new token",
            timezone="Europe/Berlin",
            hostname="vm-1",
            machine_id="0123456789abcdef0123456789abcdef",
            address="172.16.0.2/30",
            gateway="172.16.0.1",
            nameserver="9.9.9.9",
        ),
    ),
    (24, m.Shutdown()),
    (25, m.Done()),
    (2**32 - 1, m.Error(3, "no such file")),
)


def frame_of(message: Message, seq: int) -> bytes:
    """Header and payload as the side that sends this message makes them."""
    role = "guest" if message.SENDER == "both" else message.SENDER
    return b"".join(Connection(role).frame(message, seq))


def page() -> str:
    return json.dumps({type(m).__name__: frame_of(m, seq).hex() for seq, m in EXAMPLES}, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(page())
