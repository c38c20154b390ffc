"""The API slow, failing, gone, hung or not ours any more: the CLI must not notice unless the run is to end."""

from __future__ import annotations

import json
import pathlib
import threading
import time
from collections.abc import Callable

import pytest

from tests.support.fake_api import Answer, FakeApi, Received, error
from tests.unit.guest_agent.sandbox import GuestSandbox, init, lines, result
from tests.unit.guest_agent.test_run import alive, wait_for_file

EVENTS, HEARTBEAT, TELEMETRY = "/events", "/heartbeat", "/telemetry"

# Prints many events and writes down how long that took it.
TALKER = """
import json, time
started = time.monotonic()
for n in range(1500):
    print(json.dumps({"type": "assistant", "n": n, "text": "x" * 200}), flush=True)
open("took", "w").write(str(time.monotonic() - started))
"""


def on(path_end: str, answer: Callable[[Received], Answer | None]) -> Callable[[Received], Answer | None]:
    return lambda request: answer(request) if request.path.endswith(path_end) else None


def hanging(released: threading.Event) -> Callable[[Received], Answer | None]:
    def wait(request: Received) -> None:
        released.wait(30)

    return wait


def test_a_slow_api_does_not_slow_the_cli(sandbox: GuestSandbox, api: FakeApi) -> None:
    api.faults.append(on(EVENTS, lambda request: time.sleep(2)))
    sandbox.claude(lines(init()) + TALKER + lines(result()))
    done = sandbox.run("work", timeout_s=55)
    assert done.code == 0, done
    assert float((sandbox.workspace / "took").read_text()) < 1.5
    assert sorted(api.events) == list(range(1502))
    posts = api.requests(EVENTS)
    assert len(posts) < 10 and max(len(post.json["events"]) for post in posts) == 500


def test_an_api_that_fails_for_a_while_loses_nothing(sandbox: GuestSandbox, api: FakeApi) -> None:
    broken = threading.Event()
    api.faults.append(on(EVENTS, lambda request: Answer(500) if not broken.is_set() else None))
    sandbox.timings["outage_delay_s"] = 0.1
    sandbox.claude(TALKER + lines(result()))
    process = sandbox.start("work")
    api.wait_for(lambda: len(api.requests(EVENTS)) >= 10)
    broken.set()
    done = sandbox.finish(process)
    assert done.code == 0, done
    assert sorted(api.events) == list(range(1501))
    assert "events wait for the API" in done.stderr and "takes events again" in done.stderr


@pytest.mark.parametrize("answer", [Answer(0), Answer(503), Answer(200, b"")])
def test_a_repeated_delivery_does_no_harm(sandbox: GuestSandbox, api: FakeApi, answer: Answer) -> None:
    """The API took the events, but its answer was lost or useless."""
    left = [1]

    def taken(request: Received) -> Answer | None:
        if not left:
            return None
        left.pop()
        api._events(request)
        return answer

    api.faults.append(on(EVENTS, taken))
    done = sandbox.run("echo a; echo b", "command")
    assert done.code == 0, done
    assert sorted(api.events) == [0, 1, 2]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "unix:/no/such.sock"])
def test_no_api_at_all_ends_the_run(local: GuestSandbox, url: str) -> None:
    local.api_url = url
    local.timings |= {"stop_grace_s": 0.3, "terminated_flush_s": 1}
    started = time.monotonic()
    done = local.run("trap '' TERM; echo $$ > pid; while :; do sleep 1 & wait; done", "command")
    assert time.monotonic() - started < 8
    assert (done.code, done.outcome["reason"]) == (1, "api_unreachable"), done
    assert "the first heartbeat failed" in done.outcome["detail"] and "connect error" in done.outcome["detail"]


@pytest.mark.parametrize("answer", [Answer(500), Answer(401), Answer(0)])
def test_an_api_that_goes_away_ends_the_run_after_three_heartbeats(
    sandbox: GuestSandbox, api: FakeApi, answer: Answer
) -> None:
    sandbox.timings |= {"heartbeat_interval_s": 0.05, "terminated_flush_s": 1}
    gone = threading.Event()
    api.faults.append(lambda request: answer if gone.is_set() else None)
    process = sandbox.start("echo up; sleep 60", "command")
    api.wait_for(lambda: len(api.requests(HEARTBEAT)) >= 5 and 0 in api.events)
    gone.set()
    done = sandbox.finish(process)
    assert (done.code, done.outcome["reason"]) == (1, "api_unreachable"), done
    assert "3 heartbeats in a row failed" in done.outcome["detail"]


def test_single_failures_of_the_heartbeat_are_forgiven(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.timings["heartbeat_interval_s"] = 0.02
    count = [0]

    def sometimes(request: Received) -> Answer | None:
        count[0] += 1
        return Answer(401) if count[0] % 3 else None  # twice in a row, then not

    api.faults.append(on(HEARTBEAT, lambda request: sometimes(request) if count[0] or api.events else None))
    process = sandbox.start("echo up; read x < /dev/null; while [ ! -e enough ]; do sleep 0.05; done", "command")
    api.wait_for(lambda: len(api.requests(HEARTBEAT)) >= 20)
    (sandbox.workspace / "enough").write_text("x")
    assert sandbox.finish(process).code == 0


@pytest.mark.parametrize("where", [EVENTS, HEARTBEAT, TELEMETRY])
def test_a_lost_lease_ends_everything_at_once(sandbox: GuestSandbox, api: FakeApi, where: str) -> None:
    sandbox.timings |= {"heartbeat_interval_s": 0.1, "stop_grace_s": 0.3}
    sandbox.mount("ARTIFACT", sandbox.workspace)
    lost = threading.Event()
    api.faults.append(on(where, lambda request: error(409, "LEASE_LOST") if lost.is_set() else None))
    process = sandbox.start("echo $$ > pid; while :; do echo tick; sleep 0.05; done", "command")
    api.wait_for(lambda: len(api.requests(where)) >= 2)
    pid = int(wait_for_file(sandbox.workspace / "pid"))
    lost.set()
    done = sandbox.finish(process, timeout_s=10)
    assert (done.code, done.outcome["reason"]) == (1, "lease_lost"), done
    assert not alive(pid)
    refused = next(i for i, r in enumerate(api.received) if r.path.endswith(where) and i > 1 and lost.is_set())
    assert refused and len(api.checkpoints) == 0 and not api.requests("/prepare")


def test_after_a_lost_lease_nothing_more_is_written(sandbox: GuestSandbox, api: FakeApi) -> None:
    at: list[float] = []

    def lose(request: Received) -> Answer:
        at.append(request.at)
        return error(409, "LEASE_LOST")

    api.faults.append(on(EVENTS, lose))
    done = sandbox.run("for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.1; done; sleep 60", "command")
    assert done.outcome["reason"] == "lease_lost"
    assert len(api.requests(EVENTS)) == 1  # never again
    assert all(r.at - at[0] < 1 for r in api.received)


def test_an_event_that_the_api_refuses_costs_only_itself(sandbox: GuestSandbox, api: FakeApi) -> None:
    api.faults.append(on(EVENTS, lambda r: error(400, "BAD_REQUEST", "no") if b"poison" in r.body else None))
    script = "for i in $(seq 1 40); do echo line $i; done; echo poison; for i in $(seq 1 40); do echo more $i; done"
    done = sandbox.run(script, "command")
    assert done.code == 0, done
    assert sorted(set(range(82)) - set(api.events)) == [40]
    assert done.outcome["reason"] == "events_undelivered"
    assert "1 of 82 events" in done.outcome["detail"] and done.outcome["eventCount"] == 82
    assert len(api.checkpoints) == 1


def test_an_api_that_never_answers_at_the_end_is_left(sandbox: GuestSandbox, api: FakeApi) -> None:
    """The real result of the CLI survives; what is missing is said."""
    sandbox.timings |= {"event_drain_s": 0.5, "telemetry_drain_s": 0.5}
    hang = threading.Event()
    api.faults.append(on(EVENTS, hanging(hang)))
    try:
        started = time.monotonic()
        done = sandbox.run("echo x; exit 3", "command", timeout_s=20)
        assert time.monotonic() - started < 8
    finally:
        hang.set()
    assert done.code == 3 and done.outcome["reason"] == "events_undelivered"
    assert "2 of 2 events did not reach the API" in done.outcome["detail"]


def test_a_hung_api_does_not_delay_a_stop(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.timings["terminated_flush_s"] = 1
    hang = threading.Event()
    api.faults.append(on(EVENTS, hanging(hang)))
    process = sandbox.start("echo x; sleep 60", "command")
    api.wait_for(lambda: api.requests(EVENTS))
    started = time.monotonic()
    process.terminate()
    try:
        done = sandbox.finish(process, timeout_s=15)
        assert time.monotonic() - started < 6
    finally:
        hang.set()
    assert (done.code, done.outcome["reason"]) == (143, "terminated")


def test_telemetry_that_fails_is_sent_later(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.timings["telemetry_interval_s"] = 0.05
    refused: list[Received] = []

    def refuse(request: Received) -> Answer | None:
        if len(refused) < 5:
            refused.append(request)
            return Answer(500)
        return None

    api.faults.append(on(TELEMETRY, refuse))
    process = sandbox.start("while [ ! -e enough ]; do sleep 0.05; done", "command")
    api.wait_for(lambda: len(api.requests(TELEMETRY)) >= 8)
    (sandbox.workspace / "enough").write_text("x")
    assert sandbox.finish(process).code == 0
    taken = [r for r in api.requests(TELEMETRY) if r not in refused]
    log = "".join(r.json.get("systemLog", "") for r in taken)
    assert log == (sandbox.runtime / "system.log").read_text()[: len(log)] and "run ended" in log


def test_the_disk_spill_is_bounded_and_the_gap_is_told(tmp_path: pathlib.Path) -> None:
    """In one process, with small limits: the API takes nothing until the CLI has ended."""
    from vm0.guest_agent import events

    queue = events.EventQueue(str(tmp_path), memory_events=100, spill_bytes=50_000)
    for number in range(5000):
        queue.put(json.dumps({"type": "t", "n": number, "pad": "x" * 100}))
    assert queue.dropped > 4000 and queue.pending + queue.dropped == 5000
    queue.discard()
