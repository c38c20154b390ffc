"""The time an agent needs to print 50,000 lines while the API takes 2 s for each POST ÷ the same with a fast API.

A program under a real guest-agent (agent `command`) writes 50,000 lines of 100 bytes to its standard output and notes
how long its writes took. The API is a small HTTP server in a process of its own, over a Unix socket as the bridge is;
in one round it answers at once, in the other after 2 s. With more lines than the guest's queue holds in memory, the
slow round also goes through its overflow on disk. The ratio must be about 1: whoever prints never waits for the
network. In the detail, `unread_ms` is the same program writing into `cat >/dev/null`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sys
import uuid

from benchmarks.guest import ENVIRONMENT, bundle_in, workspace
from benchmarks.measurement import Effort, Measurement, Target, interleaved, median, spread
from benchmarks.peers import API_SERVER, running_peer
from vm0.guest_bundle import GuestBundle

LINES = 50_000
SLOW_S = 2.0
ROUND_S = 60.0
LOOK_EVERY_S = 0.01

# Arguments: number of lines, file for the seconds (appears when all is written).
PRINTER = """
import os, sys, time

line = b"x" * 99 + b"\\n"
left = int(sys.argv[1])
begun = time.perf_counter()
while left:
    piece = memoryview(line * min(left, 640))
    left -= len(piece) // 100
    while piece:
        piece = piece[os.write(1, piece):]
with open(sys.argv[2] + ".tmp", "w") as file:
    file.write(str(time.perf_counter() - begun))
os.rename(sys.argv[2] + ".tmp", sys.argv[2])
"""


async def run(effort: Effort) -> list[Measurement]:
    lines = LINES  # fewer would not fill the queue
    with workspace() as folder:
        printer = folder / "printer.py"
        printer.write_text(PRINTER)
        rounds = _Rounds(folder, bundle_in(folder), f"{sys.executable} -I -S {printer} {lines}")
        async with (
            running_peer(API_SERVER, str(folder / "fast.sock"), "0"),
            running_peer(API_SERVER, str(folder / "slow.sock"), str(SLOW_S)),
        ):
            slow, fast, unread = await interleaved(
                lambda: rounds.with_api(folder / "slow.sock"),
                lambda: rounds.with_api(folder / "fast.sock"),
                rounds.unread,
                rounds=effort.pick(5, 3),
            )
    return [
        Measurement(
            name="slow_api",
            value=median(slow) * 1e3,
            unit="ms",
            baseline=median(fast) * 1e3,
            against="the same with an API that answers at once",
            samples=len(slow),
            target=Target(1.25),
            detail={
                "lines": lines,
                "slow_ms": spread(slow, 1e3),
                "fast_ms": spread(fast, 1e3),
                "unread_ms": spread(unread, 1e3),
            },
        )
    ]


class _Rounds:
    def __init__(self, folder: pathlib.Path, bundle: GuestBundle, command: str) -> None:
        self._folder, self._bundle, self._command = folder, bundle, command
        self._made = 0

    async def with_api(self, api_socket: pathlib.Path) -> list[float]:
        """Seconds that the printer measured. The guest-agent is killed then: delivering is not what is measured."""
        folder = self._next_folder()
        noted = folder / "seconds"
        (folder / "payload.json").write_text(json.dumps({"prompt": f"{self._command} {noted}"}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(self._bundle.path), "guest-agent"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=ENVIRONMENT
            | {
                "HOME": str(folder),
                "CLI_AGENT_TYPE": "command",
                "VM0_RUN_ID": str(uuid.uuid4()),
                "VM0_API_URL": f"unix:{api_socket}",
                "VM0_WORKING_DIR": str(folder / "work"),
                "VM0_RUNTIME_DIR": str(folder / "runtime"),
                "VM0_PAYLOAD_FILE": str(folder / "payload.json"),
            },
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(ROUND_S):
                while not noted.exists():
                    if process.returncode is not None:
                        raise RuntimeError(f"guest-agent exited with {process.returncode} before the printer was done")
                    await asyncio.sleep(LOOK_EVERY_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return [float(noted.read_text())]

    async def unread(self) -> list[float]:
        noted = self._next_folder() / "seconds"
        process = await asyncio.create_subprocess_shell(f"{self._command} {noted} | cat >/dev/null")
        if await process.wait() != 0:
            raise RuntimeError("the printer failed")
        return [float(noted.read_text())]

    def _next_folder(self) -> pathlib.Path:
        self._made += 1
        folder = self._folder / f"round-{self._made}"
        folder.mkdir()
        return folder
