"""Round trip of *ping* over the wire protocol ÷ a bare asyncio socket echo.

Ours: `GuestClient.ping()` to a real guest process over a Unix socket, one at a time; frames, checks and a limit on
the wait are all in it. Baseline: 9 bytes (a frame's header) to an asyncio echo server in another Python process and
back over a Unix socket, both sides asyncio streams. Each sample is one round trip; blocks of both take turns.
"""

from __future__ import annotations

import asyncio

from benchmarks.guest import bundle_in, running_guest, workspace
from benchmarks.measurement import Effort, Measurement, Target, interleaved, median, spread, timed
from benchmarks.peers import ECHO_SERVER, running_peer

PAYLOAD = b"123456789"
BLOCK = 20  # short, so that what else the machine does hits both alike


async def run(effort: Effort) -> list[Measurement]:
    with workspace() as folder:
        echo_path = folder / "echo.sock"
        async with (
            running_guest(folder, bundle_in(folder)) as client,
            running_peer(ECHO_SERVER, str(echo_path)),
        ):
            reader, writer = await asyncio.open_unix_connection(str(echo_path))

            async def echo() -> None:
                writer.write(PAYLOAD)
                await reader.readexactly(len(PAYLOAD))

            try:
                ours, baseline = await interleaved(
                    lambda: timed(client.ping, BLOCK),
                    lambda: timed(echo, BLOCK),
                    rounds=effort.count(500, 3),
                    warm_up=20,
                )
            finally:
                writer.close()
                await writer.wait_closed()
    return [
        Measurement(
            name="ping",
            value=median(ours) * 1e6,
            unit="µs",
            baseline=median(baseline) * 1e6,
            against="asyncio streams echo between two Python processes over a Unix socket",
            samples=len(ours),
            target=Target(2),
            detail={"ours_us": spread(ours, 1e6), "baseline_us": spread(baseline, 1e6)},
        )
    ]
