"""A server and a runner as processes of their own, started by the `vm0` command as on a host, and what they used."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import AsyncIterator

from benchmarks.guest import ENVIRONMENT, ended
from vm0.cli.api import ApiClient
from vm0.contracts.runs import RunStatus

READY_S = 60.0
LOOK_EVERY_S = 0.1
LOG_TAIL_BYTES = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """`api` is a user's client; the pids are for what /proc knows."""

    api: ApiClient
    server_pid: int
    runner_pid: int
    home: pathlib.Path


@contextlib.asynccontextmanager
async def running_plane(home: pathlib.Path, concurrency: int) -> AsyncIterator[Plane]:
    """Ready to execute runs on the process backend. Leaving ends the runner, then the server."""
    async with (
        _vm0(home, "server", "server", "--port", "0", "--state-dir", str(home)) as (server, url),
        _vm0(
            home,
            "runner",
            *("runner", "start", "--server", url, "--token-file", str(home / "server" / "cli-runner.token")),
            *("--backend", "process", "--max-concurrent", str(concurrency), "--state-dir", str(home / "runner")),
        ) as (runner, _),
        ApiClient(url, (home / "server" / "cli-user.token").read_text("ascii").strip()) as api,
    ):
        async with asyncio.timeout(READY_S):
            while not (await api.runners()).runners:
                for name, process in (("server", server), ("runner", runner)):
                    if process.returncode is not None:
                        raise RuntimeError(f"the {name} ended with {process.returncode}: {log_tail(home, name)}")
                await asyncio.sleep(0.05)  # a runner's first heartbeat is nobody's event
        yield Plane(api, server.pid, runner.pid, home)


@contextlib.asynccontextmanager
async def _vm0(home: pathlib.Path, name: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A vm0 command that stays, and the first line it printed (a server's address; a runner prints none)."""
    with open(log_path(home, name), "wb") as log:  # noqa: ASYNC230  # nothing else runs
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vm0.cli", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if name == "server" else log,
            stderr=log,
            env=ENVIRONMENT | {"HOME": str(home)},
        )
    try:
        line = b""
        if process.stdout is not None:
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
            if not line:
                raise RuntimeError(f"the {name} ended with {await process.wait()}: {log_tail(home, name)}")
        yield process, line.decode().strip()
    finally:
        await ended(process)


async def until_ended(api: ApiClient) -> None:
    """Until no run waits or is executed. Two cheap questions at a time, so that asking is no load of its own."""
    for status in (RunStatus.PENDING, RunStatus.RUNNING):
        while (await api.list_runs(limit=1, status=status)).runs:  # noqa: ASYNC110  # a list cannot be waited for
            await asyncio.sleep(LOOK_EVERY_S)


def log_path(home: pathlib.Path, name: str) -> pathlib.Path:
    return home / f"{name}.log"


def log_tail(home: pathlib.Path, name: str) -> str:
    return log_path(home, name).read_text("utf-8", "replace")[-LOG_TAIL_BYTES:]


def cpu_s(pid: int) -> float:
    """Processor time that a process has used itself, without its children."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (the most so far)."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no {field}")


def machine_busy_s() -> float:
    """Processor time of the whole machine, not idle, since boot."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
