"""A machine without a kernel of its own: a Python script as PID 1 of new namespaces (processes, mounts, host name,
network, cgroups), on this machine's root, of which it changes nothing that survives it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.capabilities import require
from vm0.sandbox_common import cgroups

SOURCES = Path(__file__).resolve().parents[3] / "src"
NAMESPACES = (*("--mount", "--pid", "--uts", "--net", "--ipc", "--cgroup"), "--fork", "--kill-child", "--mount-proc")
LIMIT_S = 40.0
# Imported before the root changes. An assertion first: what this script calls would end the real machine.
PROLOGUE = """
import os, sys
assert os.getpid() == 1
sys.path.insert(0, sys.argv[1])
import contextlib, errno, json, resource, signal, stat, subprocess, threading, time, traceback, encodings.idna
from vm0.guest_common import names, network
from vm0.guest_init import console, machine, main, parameters, plan, supervisor, system_calls
from vm0.vsock_guest import power
from vm0.vsock_guest.files import RequestError
from vm0.vsock_proto.messages import Restore

def told(**facts):
    os.write(1, (json.dumps(facts) + "\\n").encode())

def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

def command_line(text):
    main.COMMAND_LINE = "/run/command-line"
    with open(main.COMMAND_LINE, "w") as file:
        file.write(text)

network.bring_up("lo")
run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other0")
run("ip", "link", "set", "other0", "up")
system_calls.mount("run", "/run", "tmpfs", 0, "mode=0755")
main.Console = lambda: console.Console("/proc/self/fd/2")
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """`code` as subprocess has it: -SIGINT is power off, -SIGHUP a reset (reboot(2) in a namespace of processes)."""

    code: int
    facts: list[dict[str, Any]]
    console: list[str]


def run_machine(script: str) -> Ended:
    """The script's life; what it `told`, and what came on its console. Nothing of it is left."""
    require(os.geteuid() == 0, "namespaces need root")
    require(shutil.which("unshare") is not None and shutil.which("ip") is not None, "no unshare or ip")
    with own_group() as group:
        enter = ("sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group))
        done = subprocess.run(
            [*enter, "unshare", *NAMESPACES, sys.executable, "-IS", "-c", PROLOGUE + script, str(SOURCES)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert "Traceback" not in done.stderr, done.stderr
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    return Ended(done.returncode, facts, done.stderr.splitlines())


@contextlib.contextmanager
def own_group() -> Iterator[Path]:
    parent = cgroups.writable_parent()
    require(parent is not None, "no writable cgroup v2 hierarchy with cgroup.kill")
    assert parent is not None
    group = parent / f"vm0-test-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 10
        while group.exists():  # what was killed is not reaped yet
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            assert time.monotonic() < deadline, f"{group} cannot be removed"
