"""No-op runs per second through server, runner and process sandbox ÷ the same guest programs without the first two.

Ours: runs of agent `command` with the prompt `true`, submitted over HTTP to a server process, executed by a runner
process (`vm0 server`, `vm0 runner start --backend process --max-concurrent 8`), from the first submission to the last
run completed with its checkpoint. Baseline: what a run cannot do without, 8 at a time from this process: spawn a
guest endpoint, shake hands, execute guest-agent in it in local mode (no API), which executes `true`, end the
endpoint. The ratio is therefore the share of the possible rate that claim, lease, journal, bridge, events, telemetry,
checkpoint and report leave.

`runs_start` is the time from the claim (the end of the server's phase `queued`) to the start of the phase `agent`, as
the runs' own timelines say, p50 under that load; its baseline is the start of a guest endpoint under the same load,
the one part of it that is not ours to avoid. `runs_rss` is the runner's largest resident memory, against what it had
before the first run. Processor time per run is in the detail, with p50 of each phase.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import shutil
import sys
import time

from benchmarks.guest import ENVIRONMENT, bundle_in, running_guest, workspace
from benchmarks.measurement import Better, Effort, Measurement, interleaved, median, quantile, significant, spread
from benchmarks.plane import Plane, cpu_s, machine_busy_s, memory_mib, running_plane, until_ended
from vm0.contracts.runs import AgentKind, Isolation, RunRequest, RunStatus, RunView
from vm0.guest_bundle import GuestBundle
from vm0.sandbox import Ended, ExecRequest

CONCURRENCY = 8
BLOCK = 100
PROMPT = "true"
BLOCK_S = 300.0


async def run(effort: Effort) -> list[Measurement]:
    block = effort.count(BLOCK, 2 * CONCURRENCY)
    rounds = effort.pick(5, 2)
    with workspace() as folder:
        async with running_plane(folder, CONCURRENCY) as plane:
            ours = _Ours(plane)
            chains = _Chains(folder, bundle_in(folder))
            await ours.block(CONCURRENCY)  # everything is imported and every cache is filled
            await chains.block(CONCURRENCY)
            ours.views.clear()
            chains.starts_s.clear()
            usage = _Usage(plane)
            rates, chain_rates = await interleaved(
                lambda: ours.block(block), lambda: chains.block(block), rounds=rounds, warm_up=0
            )
            return _measurements(ours, chains, rates, chain_rates, usage)


class _Usage:
    """Memory before the runs."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.runner_rss_mib = memory_mib(plane.runner_pid, "VmRSS")


class _Ours:
    """Runs through the system; keeps what the server says about each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.views: list[RunView] = []
        self.cpu_s = {"server": 0.0, "runner": 0.0, "machine": 0.0}

    async def block(self, count: int) -> list[float]:
        """Submit, wait for the end of all; runs per second."""
        api = self._plane.api
        used = self._used()
        begun = time.perf_counter()
        requests = [RunRequest(prompt=PROMPT, cli_agent_type=AgentKind.COMMAND, isolation=Isolation.PROCESS)] * count
        ids = [(await api.create_run(request)).run_id for request in requests]
        async with asyncio.timeout(BLOCK_S):
            await until_ended(api)
        seconds = time.perf_counter() - begun
        for name, now in self._used().items():
            self.cpu_s[name] += now - used[name]
        for run_id in ids:
            view = await api.run(run_id)
            if view.status is not RunStatus.COMPLETED:
                raise RuntimeError(f"a no-op run ended as {view.status.value}: {view.outcome}")
            self.views.append(view)
        return [count / seconds]

    def _used(self) -> dict[str, float]:
        plane = self._plane
        return {"server": cpu_s(plane.server_pid), "runner": cpu_s(plane.runner_pid), "machine": machine_busy_s()}


class _Chains:
    """The same programs, without the system."""

    def __init__(self, folder: pathlib.Path, bundle: GuestBundle) -> None:
        self._folder, self._bundle = folder, bundle
        self._made = 0
        self.starts_s: list[float] = []

    async def block(self, count: int) -> list[float]:
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one() -> None:
            async with slots:
                await self._chain()

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return [count / (time.perf_counter() - begun)]

    async def _chain(self) -> None:
        self._made += 1
        folder = self._folder / f"chain-{self._made}"
        folder.mkdir()
        (folder / "payload.json").write_text(json.dumps({"prompt": PROMPT}))
        begun = time.perf_counter()
        async with running_guest(folder, self._bundle) as client:
            self.starts_s.append(time.perf_counter() - begun)
            result = await client.exec(
                ExecRequest(
                    argv=(sys.executable, "-I", "-S", str(self._bundle.path), "guest-agent"),
                    env=ENVIRONMENT
                    | {
                        "HOME": str(folder),
                        "CLI_AGENT_TYPE": "command",
                        "VM0_WORKING_DIR": str(folder / "work"),
                        "VM0_RUNTIME_DIR": str(folder / "runtime"),
                        "VM0_PAYLOAD_FILE": str(folder / "payload.json"),
                    },
                )
            )
        if result.ended is not Ended.EXITED or result.exit_code != 0:
            raise RuntimeError(f"guest-agent {result.ended.value} with {result.shell_code}: {result.stderr.data!r}")
        shutil.rmtree(folder)


def _measurements(
    ours: _Ours, chains: _Chains, rates: list[float], chain_rates: list[float], usage: _Usage
) -> list[Measurement]:
    count = len(ours.views)
    starts_ms = [start_ms(view) for view in ours.views]
    runner = usage.plane.runner_pid
    return [
        Measurement(
            name="runs",
            value=median(rates),
            unit="runs/s",
            baseline=median(chain_rates),
            against="guest endpoint + guest-agent + sh without server and runner, 8 at a time",
            samples=count,
            better=Better.HIGHER,
            detail={
                "blocks": [significant(rate) for rate in rates],
                "baseline_blocks": [significant(rate) for rate in chain_rates],
                "cpu_ms_per_run": {name: significant(used * 1e3 / count) for name, used in ours.cpu_s.items()},
                "phases_p50_ms": phases_p50_ms(ours.views),
            },
        ),
        Measurement(
            name="runs_start",
            value=median(starts_ms),
            unit="ms",
            baseline=median(chains.starts_s) * 1e3,
            against="start of a guest endpoint in the chain without the system",
            samples=count,
            detail={"ours_ms": spread(starts_ms), "baseline_ms": spread(chains.starts_s, 1e3)},
        ),
        Measurement(
            name="runs_rss",
            value=memory_mib(runner, "VmHWM"),
            unit="MiB",
            baseline=usage.runner_rss_mib,
            against="the runner after its first 8 runs",
            samples=1,
            detail={"runs": count, "now_mib": memory_mib(runner, "VmRSS")},
        ),
    ]


def start_ms(view: RunView) -> float:
    """From the claim to the agent, as the timeline has it. Server and runner are on one machine, so on one clock."""
    steps = {step.phase: step for step in view.timeline}
    queued = steps["queued"]
    return steps["agent"].started_at_ms - (queued.started_at_ms + (queued.duration_ms or 0.0))


def phases_p50_ms(views: list[RunView]) -> dict[str, float]:
    """In the order in which the first run had them."""
    durations: dict[str, list[float]] = {}
    for view in views:
        for step in view.timeline:
            durations.setdefault(step.phase, []).append(step.duration_ms or 0.0)
    return {phase: significant(quantile(found, 0.5)) for phase, found in durations.items()}
