"""Two start-ups: `vm0 --help` ÷ `python -c pass`, and a guest from spawn to handshake ÷ `python -I -S -c pass`.

`vm0_help`: the installed `vm0` command from spawn to exit, against the same interpreter doing nothing; what a person
at a prompt waits for. `guest_start`: from the spawn of `vsock-guest` to the end of the handshake (connected, *ready*
checked, *ping* answered), against the same interpreter starting with the same options and exiting; what every sandbox
waits for. The guest's bundle is built before.
"""

from __future__ import annotations

import asyncio
import pathlib
import sys
import time

from benchmarks.guest import ENVIRONMENT, bundle_in, running_guest, workspace
from benchmarks.measurement import Effort, Measurement, Target, interleaved, median, spread, timed
from vm0.guest_bundle import GuestBundle

BLOCK = 4
HELP_TARGET_MS = 200
GUEST_TARGET_MS = 60


async def run(effort: Effort) -> list[Measurement]:
    rounds = effort.count(8, 2)
    with workspace() as folder:
        bundle = bundle_in(folder)
        showing_help, passing = await interleaved(
            lambda: timed(lambda: run_to_end(*help_command()), BLOCK),
            lambda: timed(lambda: run_to_end(sys.executable, "-c", "pass"), BLOCK),
            rounds=rounds,
        )
        starting, bare = await interleaved(
            lambda: guest_starts(folder, bundle),
            lambda: timed(lambda: run_to_end(sys.executable, "-I", "-S", "-c", "pass"), BLOCK),
            rounds=rounds,
        )
    return [
        _measurement("vm0_help", showing_help, passing, "python -c pass", HELP_TARGET_MS),
        _measurement("guest_start", starting, bare, "python -I -S -c pass", GUEST_TARGET_MS),
    ]


def _measurement(name: str, ours: list[float], baseline: list[float], against: str, target_ms: float) -> Measurement:
    return Measurement(
        name=name,
        value=median(ours) * 1e3,
        unit="ms",
        baseline=median(baseline) * 1e3,
        against=against,
        samples=len(ours),
        target=Target(target_ms, on="value"),
        detail={"ours_ms": spread(ours, 1e3), "baseline_ms": spread(baseline, 1e3)},
    )


def help_command() -> tuple[str, ...]:
    script = pathlib.Path(sys.executable).with_name("vm0")
    return (str(script), "--help") if script.exists() else (sys.executable, "-m", "vm0.cli", "--help")


async def run_to_end(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, env=ENVIRONMENT
    )
    if await process.wait() != 0:
        raise RuntimeError(f"{command[0]} exited with {process.returncode}")


async def guest_starts(folder: pathlib.Path, bundle: GuestBundle) -> list[float]:
    """The end of each guest is awaited, but not counted."""
    seconds = []
    for _ in range(BLOCK):
        begun = time.perf_counter()
        async with running_guest(folder, bundle):
            seconds.append(time.perf_counter() - begun)
    return seconds
