"""Events per second from an agent's standard output to the server's database ÷ reading that output into SQLite.

Ours: one run of agent `command` prints a time stamp and then 20,000 lines of 100 bytes at once; guest-agent makes an
event of each line, masks, numbers and batches them, the runner's bridge adds the token, the server checks and stores
them. From that time stamp to the moment when a client that waits for the last line's event has it. Baseline: one
Python process reads the same lines from a pipe, makes the same JSON and inserts it into SQLite with the server's
pragmas, 500 per transaction: the least that could be called delivered.
"""

from __future__ import annotations

import asyncio
import pathlib
import sys
import time

from benchmarks.guest import workspace
from benchmarks.measurement import Better, Effort, Measurement, interleaved, median, significant, spread
from benchmarks.plane import Plane, cpu_s, running_plane, until_ended
from vm0.contracts.runs import AgentKind, Isolation, RunRequest

LINES = 20_000
WAIT_S = 120.0
LONG_POLL_S = 30
FLOOD = "seq -f 'line %07.0f of a flood of which an agent prints many at the same moment ..................' 1 {lines}"

# Arguments: database, number of lines, command. Prints seconds.
BARE_READER = """
import json, sqlite3, subprocess, sys, time

path, lines, command = sys.argv[1:]
database = sqlite3.connect(path, isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE events (run INTEGER, seq INTEGER, event TEXT, PRIMARY KEY (run, seq)) WITHOUT ROWID")
begun = time.perf_counter()
with subprocess.Popen(["/bin/sh", "-c", command], stdout=subprocess.PIPE) as flood:
    rows, seq = [], 0

    def store():
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO events VALUES (1, ?, ?)", rows)
        database.execute("COMMIT")
        rows.clear()

    for line in flood.stdout:
        event = {"type": "output", "stream": "stdout", "text": line.decode().rstrip("\\n"), "sequenceNumber": seq}
        rows.append((seq, json.dumps(event, separators=(",", ":"))))
        seq += 1
        if len(rows) == 500:
            store()
    if rows:
        store()
assert seq == int(lines), seq
print(time.perf_counter() - begun)
"""


async def run(effort: Effort) -> list[Measurement]:
    lines = effort.count(LINES, 2000)
    with workspace() as folder:
        async with running_plane(folder, 1) as plane:
            ours = _Ours(plane, lines)
            rates, bare_rates = await interleaved(
                ours.round, lambda: bare_round(folder, lines), rounds=effort.pick(5, 2)
            )
    return [
        Measurement(
            name="events",
            value=median(rates),
            unit="events/s",
            baseline=median(bare_rates),
            against="one Python process: the same lines from a pipe, the same JSON into SQLite, 500 per transaction",
            samples=len(rates),
            better=Better.HIGHER,
            detail={
                "lines": lines,
                "ours": spread(rates),
                "baseline": spread(bare_rates),
                "cpu_us_per_event": {
                    name: significant(used * 1e6 / lines / ours.rounds) for name, used in ours.cpu_s.items()
                },
            },
        )
    ]


class _Ours:
    def __init__(self, plane: Plane, lines: int) -> None:
        self._plane, self._lines = plane, lines
        self.rounds = 0
        self.cpu_s = {"server": 0.0, "runner": 0.0}

    async def round(self) -> list[float]:
        """One run; event 0 is the time stamp, events 1 to `lines` are the lines."""
        api, plane = self._plane.api, self._plane
        pids = {"server": plane.server_pid, "runner": plane.runner_pid}
        used = {name: cpu_s(pid) for name, pid in pids.items()}
        prompt = f"date +%s%N; {FLOOD.format(lines=self._lines)}"
        request = RunRequest(prompt=prompt, cli_agent_type=AgentKind.COMMAND, isolation=Isolation.PROCESS)
        run_id = (await api.create_run(request)).run_id
        async with asyncio.timeout(WAIT_S):
            while not (page := await api.events(run_id, after=self._lines - 1, wait_s=LONG_POLL_S, limit=1)).events:
                if page.complete:
                    raise RuntimeError(f"the run ended without all events: {await api.run(run_id)}")
            arrived_ns = time.time_ns()
            first = (await api.events(run_id, after=-1, limit=1)).events[0]
            await until_ended(api)
        self.rounds += 1
        for name, pid in pids.items():
            self.cpu_s[name] += cpu_s(pid) - used[name]
        return [self._lines / ((arrived_ns - int(first["text"])) / 1e9)]


async def bare_round(folder: pathlib.Path, lines: int) -> list[float]:
    path = folder / f"bare-{time.monotonic_ns()}.sqlite3"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", BARE_READER, str(path), str(lines), FLOOD.format(lines=lines)),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the baseline exited with {process.returncode}")
    return [lines / float(printed)]
