"""`vm0 benchmark`: what a virtual machine of this host takes to start and to answer, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import platform
from typing import Any

from vm0.benchmark import MEMORY_MIB, VCPUS, Effort, document, measure, table
from vm0.cli.config import Settings
from vm0.cli.local_sandboxes import Wanted, free_state_dir, local_config
from vm0.cli.steps import Steps, steps_for
from vm0.cli.table import print_json, print_table
from vm0.cli.vm_preparation import asked, prepare_backend
from vm0.image import BuildOptions
from vm0.runner.backends import make_factory


def benchmark(*, image: str, quick: bool, state_dir: pathlib.Path | None, as_json: bool) -> int:
    """Exit code 0 whether the targets are met or not: a measurement judges nobody's machine."""
    settings = Settings.from_environment()
    home = state_dir.absolute() if state_dir is not None else settings.state_dir
    wanted = Wanted(image=image)
    with contextlib.closing(steps_for(plain=settings.plain)) as steps:
        prepare_backend(home, wanted, steps, consent=asked, build=BuildOptions())
        machine = {**machine_facts(), "load_before": os.getloadavg()}
        with free_state_dir(home) as state:
            samples = asyncio.run(_measured(home, state, wanted, Effort.quick() if quick else Effort(), steps))
    found = document(samples, {**machine, "load_after": os.getloadavg()})
    if as_json:
        print_json(found)
        return 0
    header, *rows = table(found)
    print_table(header, rows)
    print(f"\n{VCPUS} vCPU, {MEMORY_MIB} MiB, {found['accelerator']}: {found['backend'].get('why', '')}")
    return 0


async def _measured(home: pathlib.Path, state: pathlib.Path, wanted: Wanted, effort: Effort, steps: Steps) -> Any:
    shape = {"sandbox_vcpus": VCPUS, "sandbox_memory_mib": MEMORY_MIB}
    booting = make_factory(local_config(home, state / "booting", wanted, snapshot=False, **shape), steps.step)
    restoring = make_factory(local_config(home, state, wanted, snapshot=True, **shape), steps.step)
    async with booting, restoring:
        return await measure(booting, restoring, effort, steps.step)


def machine_facts() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "kernel": platform.release(), "architecture": platform.machine()}
