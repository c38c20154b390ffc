"""Takes the numbers: real virtual machines, one after another unless it says otherwise, on a machine that may be busy.

What each number is, is said where it is collected; nothing is computed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from vm0.sandbox import ExecRequest, Forking, Sandbox, SandboxConfig, SandboxError, SandboxFactory

VCPUS = 1
MEMORY_MIB = 256
AT_ONCE = 8  # restores that are started together
EXECS = 10  # of each restored clone: the first and the last are recorded
FILE_BYTES = 64 * 1024 * 1024
FILE_PATH = "/home/user/benchmark.bin"
IDLE_S = 2.0  # a clone is left alone this long before its memory is looked at
NOTHING = ExecRequest(argv=("true",))
PSS_LINE = re.compile(r"^(Pss|Pss_Anon|Pss_File|Pss_Shmem|Private_Clean|Private_Dirty):\s+(\d+) kB$", re.MULTILINE)

Say = Callable[[str], None]


class MeasuredSandbox(Sandbox, Protocol):
    """What a virtual machine tells besides."""

    @property
    def vmm_pid(self) -> int: ...

    @property
    def start_seconds(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How many of each."""

    boots: int = 10
    restores: int = 30
    execs: int = 200
    cycles: int = 20
    bursts: int = 3
    files: int = 5
    forks: int = 5

    @classmethod
    def quick(cls) -> Effort:
        return cls(boots=2, restores=8, execs=40, cycles=5, bursts=1, files=2, forks=2)


@dataclass(slots=True)
class Samples:
    """All in seconds but for memory (MiB by part of PSS) and files (MB/s, 10^6 bytes)."""

    facts: dict[str, str] = field(default_factory=dict)
    create: list[float] = field(default_factory=list)  # a seat: network namespace, disk, folder
    cold_boot: list[float] = field(default_factory=list)  # `start` of a VM that boots: the guest has answered
    cold_first_exec: list[float] = field(default_factory=list)  # the same, and the first command has ended
    restore: list[float] = field(default_factory=list)  # `start` of a VM that is restored: the guest has answered
    restore_exec: list[float] = field(default_factory=list)  # the same, and the first command has ended
    restore_steps: dict[str, list[float]] = field(default_factory=dict)  # the named steps of `restore`
    first_exec: list[float] = field(default_factory=list)
    tenth_exec: list[float] = field(default_factory=list)
    exec: list[float] = field(default_factory=list)  # round trips of `true` in one VM, after those ten
    destroy: list[float] = field(default_factory=list)
    burst: list[float] = field(default_factory=list)  # from the first of 8 starts to the last one's answer
    cycle: list[float] = field(default_factory=list)  # create, start, destroy
    fork: list[float] = field(default_factory=list)  # a running VM to a second one that has answered
    file_in: list[float] = field(default_factory=list)
    file_out: list[float] = field(default_factory=list)
    pss_alone: dict[str, float] = field(default_factory=dict)  # of one idle clone
    pss_of_eight: dict[str, float] = field(default_factory=dict)  # mean of eight idle clones of one snapshot


async def measure(booting: SandboxFactory, restoring: SandboxFactory, effort: Effort, say: Say) -> Samples:
    """Both factories are entered, make VMs of `MEMORY_MIB` and `VCPUS`, and are used by nobody else meanwhile.

    A few minutes without hardware virtualisation. Raises SandboxError; the VMs are destroyed in any case.
    """
    samples = Samples(facts=dict(restoring.describe()))
    steps: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
        (f"{effort.boots} cold boots", lambda: _boots(booting, effort, samples)),
        (f"{effort.restores} restores", lambda: _restores(restoring, effort, samples)),
        (f"{effort.execs} commands", lambda: _execs(restoring, effort, samples)),
        ("memory of an idle clone", lambda: _memory(restoring, samples)),
        (f"{AT_ONCE} restores at once", lambda: _bursts(restoring, effort, samples)),
        (f"{effort.cycles} times create, start, destroy", lambda: _cycles(restoring, effort, samples)),
        ("files in and out", lambda: _files(restoring, effort, samples)),
        (f"{effort.forks} forks", lambda: _forks(restoring, effort, samples)),
    )
    for text, step in steps:
        say(text)
        await step()
    return samples


async def _boots(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    for _ in range(effort.boots):
        async with _created(factory) as sandbox:
            begun = time.perf_counter()
            await sandbox.start()
            samples.cold_boot.append(time.perf_counter() - begun)
            await _nothing(sandbox)
            samples.cold_first_exec.append(time.perf_counter() - begun)


async def _restores(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    async with _created(factory) as warm_up:  # the snapshot's pages and QEMU's are in memory as in any busy runner
        await warm_up.start()
    for _ in range(effort.restores):
        with _timed(samples.create):
            sandbox = await factory.create(_config())
        try:
            begun = time.perf_counter()
            await sandbox.start()
            samples.restore.append(time.perf_counter() - begun)
            with _timed(samples.first_exec):
                await _nothing(sandbox)
            samples.restore_exec.append(time.perf_counter() - begun)
            for _ in range(EXECS - 2):
                await _nothing(sandbox)
            with _timed(samples.tenth_exec):
                await _nothing(sandbox)
            for name, seconds in cast(MeasuredSandbox, sandbox).start_seconds.items():
                samples.restore_steps.setdefault(name, []).append(seconds)
        finally:
            with _timed(samples.destroy):
                await factory.destroy(sandbox)


async def _execs(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    async with _created(factory) as sandbox:
        await sandbox.start()
        for _ in range(EXECS):
            await _nothing(sandbox)
        for _ in range(effort.execs):
            with _timed(samples.exec):
                await _nothing(sandbox)


async def _memory(factory: SandboxFactory, samples: Samples) -> None:
    async with _created(factory) as sandbox:
        await sandbox.start()
        await asyncio.sleep(IDLE_S)
        samples.pss_alone = pss_mib(sandbox.vmm_pid)


async def _bursts(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    for number in range(effort.bursts):
        async with contextlib.AsyncExitStack() as stack:
            sandboxes = [await stack.enter_async_context(_created(factory)) for _ in range(AT_ONCE)]
            with _timed(samples.burst):
                await asyncio.gather(*(sandbox.start() for sandbox in sandboxes))
            if number == 0:
                await asyncio.sleep(IDLE_S)
                found = [pss_mib(sandbox.vmm_pid) for sandbox in sandboxes]
                samples.pss_of_eight = {part: sum(one[part] for one in found) / len(found) for part in found[0]}


async def _cycles(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    for _ in range(effort.cycles):
        with _timed(samples.cycle):
            async with _created(factory) as sandbox:
                await sandbox.start()


async def _files(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    data = os.urandom(FILE_BYTES)
    async with _created(factory) as sandbox:
        await sandbox.start()
        for _ in range(effort.files):
            begun = time.perf_counter()
            await sandbox.write_file(FILE_PATH, data)
            samples.file_in.append(FILE_BYTES / 1e6 / (time.perf_counter() - begun))
            out = io.BytesIO()
            begun = time.perf_counter()
            await sandbox.read_file(FILE_PATH, out)
            samples.file_out.append(FILE_BYTES / 1e6 / (time.perf_counter() - begun))
            if out.getbuffer() != data:
                raise SandboxError("a file came back different")


async def _forks(factory: SandboxFactory, effort: Effort, samples: Samples) -> None:
    async with _created(factory) as sandbox:
        await sandbox.start()
        for _ in range(effort.forks):
            with _timed(samples.fork):
                forks = await cast(Forking, factory).fork(sandbox, [_config()])
            for fork in forks:
                await factory.destroy(fork)


_numbers = itertools.count(1)


def _config() -> SandboxConfig:
    return SandboxConfig(sandbox_id=f"benchmark-{next(_numbers)}", vcpus=VCPUS, memory_mib=MEMORY_MIB)


@contextlib.asynccontextmanager
async def _created(factory: SandboxFactory) -> AsyncIterator[MeasuredSandbox]:
    sandbox = await factory.create(_config())
    try:
        yield cast(MeasuredSandbox, sandbox)
    finally:
        await factory.destroy(sandbox)


async def _nothing(sandbox: Sandbox) -> None:
    result = await sandbox.exec(NOTHING)
    if result.shell_code != 0:
        raise SandboxError(f"`true` {result.ended.value} with {result.shell_code}")


@contextlib.contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    into.append(time.perf_counter() - begun)


def pss_mib(pid: int) -> dict[str, float]:
    """Proportional memory of a process, in all and by part; `private` is what would be free if it ended."""
    found = {name: int(kib) / 1024 for name, kib in PSS_LINE.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())}
    return {
        "total": found["Pss"],
        "anonymous": found["Pss_Anon"],  # QEMU's own, and the guest's pages that were written
        "files": found["Pss_File"],  # QEMU's program and libraries
        "snapshot": found["Pss_Shmem"],  # pages of the snapshot that were read, divided by who has them
        "private": found["Private_Clean"] + found["Private_Dirty"],
    }
