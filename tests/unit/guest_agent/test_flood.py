"""Floods: the CLI runs at full speed, memory stays bounded, and what is lost is counted."""

from __future__ import annotations

import sys
import time

import pytest

from tests.support.fake_api import FakeApi
from tests.unit.guest_agent.sandbox import GuestSandbox

MIB = 1024 * 1024
PEAK_LIMIT_BYTES = 200 * MIB  # interpreter and modules 40, queue 16 and its overhead, chunks, one batch as text

STREAM_JSON = f"""
line = '{{"type":"assistant","message":{{"content":[{{"type":"text","text":"' + "x" * 1000 + '"}}]}}}}\\n'
block = line * 100
import sys
for _ in range({120 * MIB} // len(block)):
    sys.stdout.write(block)
print('{{"type":"result","subtype":"success","is_error":false,"result":"flooded"}}')
"""


@pytest.mark.parametrize("slow_s", [0.0, 0.5])
def test_a_flood_of_events(sandbox: GuestSandbox, api: FakeApi, slow_s: float) -> None:
    """120 MiB; a slow API makes it spill to disk, and with little time at the end the rest is given up, and said."""
    api.faults.append(lambda request: time.sleep(slow_s) if request.path.endswith("/events") else None)
    sandbox.timings["event_drain_s"] = 30 if not slow_s else 0.5
    sandbox.claude(STREAM_JSON)
    done = sandbox.run("work", timeout_s=55)
    count = 120 * MIB // (100 * 1063) * 100 + 1
    assert done.code == 0 and done.stdout == "flooded\n", done.outcome
    assert abs(done.outcome["eventCount"] - count) < 2000
    assert done.peak_memory_bytes < PEAK_LIMIT_BYTES
    arrived = sorted(api.events)
    assert arrived == list(range(len(arrived)))
    if slow_s:
        missing = done.outcome["eventCount"] - len(arrived)
        assert done.outcome["reason"] == "events_undelivered" and missing > 1000
    else:
        assert len(arrived) == done.outcome["eventCount"] and "reason" not in done.outcome


def test_a_line_without_end(sandbox: GuestSandbox, api: FakeApi) -> None:
    done = sandbox.run("head -c 300000000 /dev/zero | tr '\\0' y; echo; echo end", "command", timeout_s=55)
    assert done.code == 0, done.outcome
    assert [e.get("text", "")[-3:] for _, e in sorted(api.events.items())] == ["yyy", "end", ""]
    assert api.events[0]["cut_bytes"] == 300_000_000 - MIB
    assert done.peak_memory_bytes < PEAK_LIMIT_BYTES
    size = (sandbox.runtime / "agent.log").stat().st_size
    assert 64 * MIB <= size < 64 * MIB + 100


def test_noise_that_is_no_event(local: GuestSandbox) -> None:
    local.claude("import sys\nfor _ in range(2000):\n    sys.stdout.write('not json at all\\n' * 1000)\n")
    done = local.run("work", timeout_s=55)
    assert done.code == 0 and done.outcome["eventCount"] == 0
    assert done.peak_memory_bytes < PEAK_LIMIT_BYTES


def test_the_cli_is_as_fast_as_its_reader(sandbox: GuestSandbox, api: FakeApi) -> None:
    """With an API that takes a second per POST, the CLI's output takes as long as without any API."""
    program = (
        "import time, sys\nstarted = time.monotonic()\n"
        + STREAM_JSON.replace(str(120 * MIB), str(20 * MIB))
        + "sys.stdout.flush()\nopen('took', 'w').write(str(time.monotonic() - started))\n"
    )
    api.faults.append(lambda request: time.sleep(1) if request.path.endswith("/events") else None)
    sandbox.timings["event_drain_s"] = 0.5
    sandbox.claude(program)
    done = sandbox.run("work", timeout_s=55)
    assert done.code == 0, done.outcome
    slow_s = float((sandbox.workspace / "took").read_text())
    sandbox.api_url = ""
    assert sandbox.run("work", timeout_s=55).code == 0
    alone_s = float((sandbox.workspace / "took").read_text())
    print(f"with a slow API {slow_s:.2f} s, without {alone_s:.2f} s", file=sys.stderr)
    assert slow_s < alone_s * 3 + 1
