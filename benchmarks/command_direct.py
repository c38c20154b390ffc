"""Running `true` in the guest ÷ spawning it directly from asyncio.

Ours: `GuestClient.exec` of `/bin/true`, one at a time: request, fork and exec in the guest with both output streams
captured, exit noticed, result back. Baseline: `asyncio.create_subprocess_exec("/bin/true")` without pipes, and
`wait`, in this process. In the detail, `sandbox_ms` is the same through `vm0.sandbox_process`, whose guest makes a
cgroup for each command where this host has a writable cgroup v2 hierarchy (`containment` says).
"""

from __future__ import annotations

import asyncio

from benchmarks.guest import bundle_in, running_guest, workspace
from benchmarks.measurement import Effort, Measurement, Target, interleaved, median, spread, timed
from vm0.sandbox import ExecRequest, SandboxConfig
from vm0.sandbox_process import ProcessSandboxFactory

TRUE = "/bin/true"
REQUEST = ExecRequest(argv=(TRUE,))
BLOCK = 4


async def spawn() -> None:
    process = await asyncio.create_subprocess_exec(TRUE, stdin=asyncio.subprocess.DEVNULL)
    await process.wait()


async def run(effort: Effort) -> list[Measurement]:
    with workspace() as folder:
        async with (
            ProcessSandboxFactory(folder / "backend") as factory,
            running_guest(folder, bundle_in(folder)) as client,
        ):
            sandbox = await factory.create(SandboxConfig(sandbox_id="bench"))
            await sandbox.start()
            ours, baseline, in_sandbox = await interleaved(
                lambda: timed(lambda: client.exec(REQUEST), BLOCK),
                lambda: timed(spawn, BLOCK),
                lambda: timed(lambda: sandbox.exec(REQUEST), BLOCK),
                rounds=effort.count(150, 3),
                warm_up=5,
            )
            containment = factory.describe()["containment"].split(" ")[0]
    return [
        Measurement(
            name="exec",
            value=median(ours) * 1e3,
            unit="ms",
            baseline=median(baseline) * 1e3,
            against="asyncio.create_subprocess_exec and wait, no pipes",
            samples=len(ours),
            target=Target(2),
            detail={
                "ours_ms": spread(ours, 1e3),
                "baseline_ms": spread(baseline, 1e3),
                "sandbox_ms": spread(in_sandbox, 1e3),
                "containment": containment,
            },
        )
    ]
