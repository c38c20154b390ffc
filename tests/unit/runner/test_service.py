"""The runner as a whole: the stop ladder, one per state directory, recovery, failpoints, what it says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid

import pytest

from tests.support.fake_backend import Call
from tests.support.fake_control_plane import FakeRun
from tests.unit.runner.conftest import Bench
from vm0.contracts.runner import ReleaseRequest
from vm0.contracts.runs import OutcomeKind, RunStatus
from vm0.contracts.webhooks import CompleteRequest
from vm0.runner.backends import make_factory
from vm0.runner.errors import StateDirectoryInUse
from vm0.runner.failpoints import NAMES
from vm0.runner.service import Runner, running_runner, serve
from vm0.runner.spool import JournalRecord, JournalState, Spool
from vm0.runner.state_directory import StateDirectory
from vm0.sandbox import BackendUnavailable


async def hanging_agent(call: Call) -> int:
    await asyncio.Event().wait()
    return 0


async def obedient_agent(call: Call) -> int:
    await call.terminated.wait()
    return 143


async def test_many_runs_share_the_slots(bench: Bench) -> None:
    most = now = 0
    all_slots = asyncio.Barrier(3)

    async def agent(call: Call) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        async with asyncio.timeout(10):
            await all_slots.wait()  # broken up only by as many agents as there are slots
        now -= 1
        return 0

    bench.factory.programs["guest-agent"] = agent
    runs = [bench.plane.add_run() for _ in range(18)]
    async with bench.runner(max_concurrent=3):
        async with asyncio.timeout(30):
            for run in runs:
                await run.over.wait()
    assert most == 3 and all(len(run.completions) == 1 for run in runs)
    assert bench.left_over() == []


async def test_a_drain_finishes_what_runs_and_claims_nothing_more(bench: Bench) -> None:
    proceed = asyncio.Event()

    async def agent(call: Call) -> int:
        await proceed.wait()
        return 0

    bench.factory.programs["guest-agent"] = agent
    first = bench.plane.add_run()
    async with bench.runner() as runner:
        await bench.factory.reached("running guest-agent")
        runner.stop()
        second = bench.plane.add_run()
        await bench.plane.announce()
        await bench.plane.until(lambda: any(beat["mode"] == "draining" for beat in bench.plane.heartbeats))
        assert json.loads((bench.folder / "state" / "status.json").read_text())["mode"] == "draining"
        proceed.set()
    assert first.state.status is RunStatus.COMPLETED and second.state.status is RunStatus.PENDING


async def test_a_second_stop_ends_the_runs_and_reports_them(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = hanging_agent
    run = bench.plane.add_run()
    async with bench.runner() as runner:
        await bench.factory.reached("running guest-agent")
        runner.stop()
        runner.stop()
    outcome = run.completions[0].outcome
    assert outcome is not None and (outcome.kind, outcome.reason) == (OutcomeKind.LOST, "runner_stopped")
    assert bench.left_over() == []


async def test_an_exception_in_the_body_cancels_the_runs(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = hanging_agent
    run = bench.plane.add_run()
    with pytest.raises(ZeroDivisionError):
        async with bench.runner():
            await bench.factory.reached("running guest-agent")
            raise ZeroDivisionError
    assert len(run.completions) == 1 and bench.left_over() == []


async def test_cancelling_the_runner_ends_its_runs_first(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = hanging_agent
    run = bench.plane.add_run()
    runner = Runner(bench.config(), bench.factory)
    task = asyncio.create_task(runner.run())
    await bench.factory.reached("running guest-agent")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(run.completions) == 1 and bench.left_over() == []


async def test_a_run_claimed_during_a_stop_is_given_back(bench: Bench) -> None:
    bench.plane.faults["claim"] = ["slow:0.3"]
    run = bench.plane.add_run()
    async with bench.runner() as runner:
        await bench.plane.until(lambda: "claim" in bench.plane.calls)
        runner.drain()
    assert [release.reason for release in run.releases] == ["runner_stopped"]
    assert run.state.status is RunStatus.PENDING and bench.left_over() == []


@pytest.mark.parametrize("signals", [1, 2])
async def test_signals_are_steps_of_the_ladder(bench: Bench, signals: int) -> None:
    bench.factory.programs["guest-agent"] = hanging_agent if signals == 2 else obedient_agent
    run = bench.plane.add_run(timeout_seconds=1 if signals == 1 else 60)
    serving = asyncio.create_task(serve(bench.config(), bench.factory))
    await bench.factory.reached("running guest-agent")
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)  # two pending signals of a number would be one
    async with asyncio.timeout(20):
        await serving
    outcome = run.completions[0].outcome
    assert outcome is not None
    assert outcome.kind is (OutcomeKind.TIMED_OUT if signals == 1 else OutcomeKind.LOST)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_state_directory_has_one_runner(bench: Bench) -> None:
    async with bench.runner():
        with pytest.raises(StateDirectoryInUse) as caught:
            async with bench.runner():
                pass
        assert caught.value.holder_pid == os.getpid()
        assert str(os.getpid()) in str(caught.value)
    async with bench.runner():
        pass


async def test_a_runner_that_cannot_start_leaves_the_directory_free(bench: Bench) -> None:
    async def broken() -> None:
        raise BackendUnavailable("no kvm", hint="buy one")

    bench.factory.__class__.__aenter__, kept = lambda self: broken(), bench.factory.__class__.__aenter__  # type: ignore[assignment,return-value]
    try:
        with pytest.raises(BackendUnavailable):
            async with bench.runner():
                pass
    finally:
        bench.factory.__class__.__aenter__ = kept  # type: ignore[method-assign]
    async with bench.runner():
        pass


async def test_status_says_what_runs(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = obedient_agent
    run = bench.plane.add_run(timeout_seconds=1)
    file = bench.folder / "state" / "status.json"
    async with bench.runner(max_concurrent=2):
        await bench.plane.until(lambda: '"agent"' in file.read_text())
        status = json.loads(file.read_text())
        await run.over.wait()
    assert (status["mode"], status["max_concurrent"]) == ("running", 2)
    (active,) = status["active_runs"]
    assert active["run_id"] == run.run_id and active["phase"] == "agent"
    assert active["sandbox_id"] == bench.factory.sandboxes[0].sandbox_id != run.run_id
    ended = json.loads(file.read_text())
    assert (ended["mode"], ended["active_runs"]) == ("stopped", [])


async def test_heartbeats_say_who_it_is(bench: Bench) -> None:
    bench.plane.faults["heartbeat"] = ["500", "lost"]
    async with bench.runner(heartbeat_s=0.02, name="höst"):
        await bench.plane.until(lambda: len(bench.plane.heartbeats) >= 3)
    beat = bench.plane.heartbeats[-1]
    assert (beat["runnerName"], beat["backend"], beat["maxConcurrent"]) == ("höst", "fake", 2)
    assert beat["runnerId"] == StateDirectory(bench.folder / "state").runner_id()


# --- recovery


def left_behind(bench: Bench, run: FakeRun, state: JournalState, **report: object) -> None:
    """What a runner that was killed at this moment leaves on the disk, and what the server then knows."""
    folder = StateDirectory(bench.folder / "state")
    folder.root.mkdir(exist_ok=True)
    spool = Spool(folder.root / "spool")
    spool.prepare()
    record = JournalRecord(run_id=run.run_id, epoch=1, state=state, **report)  # type: ignore[arg-type]
    spool.journal(run.run_id, 1).write(record)


async def claimed_before(bench: Bench, *, started: bool, max_attempts: int = 3) -> FakeRun:
    """A run whose lease belongs to a former life of this state directory."""
    from vm0.server.domain import leases

    run = bench.plane.add_run(max_attempts=max_attempts)
    root = bench.folder / "state"
    root.mkdir()
    runner_id, boot_id = StateDirectory(root).runner_id(), str(uuid.uuid4())
    now = bench.plane._now()
    run.state, _ = leases.claim(run.state, runner_id, boot_id, now, 600_000)
    if started:
        run.state, _ = leases.renew(run.state, runner_id, boot_id, 1, True, now, 600_000)
    return run


async def test_a_run_that_was_only_claimed_is_given_back_and_done(bench: Bench) -> None:
    run = await claimed_before(bench, started=False)
    left_behind(bench, run, JournalState.CLAIMED)
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert [release.reason for release in run.releases] == ["runner_restarted"]
    assert run.state.status is RunStatus.COMPLETED and run.state.epoch == 2
    assert bench.left_over() == []


async def test_a_run_marked_but_not_journaled_as_started_is_given_back_and_done(bench: Bench) -> None:
    """The crash came between the server's yes and our note of it: our journal knows that the agent did not run."""
    run = await claimed_before(bench, started=True)
    left_behind(bench, run, JournalState.CLAIMED)
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert [release.reason for release in run.releases] == ["runner_restarted"]
    assert run.state.status is RunStatus.COMPLETED and run.state.epoch == 2
    assert bench.left_over() == []


async def test_a_run_whose_agent_ran_is_lost(bench: Bench) -> None:
    run = await claimed_before(bench, started=True)
    left_behind(bench, run, JournalState.AGENT_STARTED)
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    outcome = run.completions[0].outcome
    assert outcome is not None and (outcome.kind, outcome.reason) == (OutcomeKind.LOST, "runner_crashed")
    assert bench.factory.sandboxes == [] and bench.left_over() == []


@pytest.mark.parametrize("faults", [[], ["500", "lost", "500"]])
async def test_a_report_that_was_not_delivered_is_delivered(bench: Bench, faults: list[str]) -> None:
    run = await claimed_before(bench, started=True)
    report = CompleteRequest(run_id=run.run_id, epoch=1, exit_code=7)
    left_behind(bench, run, JournalState.REPORTED, complete=report)
    bench.plane.faults["complete"] = faults
    async with bench.runner(shutdown_report_s=20.0):
        await bench.plane.until(run.over.is_set)
    assert run.completions[0] == report and bench.left_over() == []


async def test_a_report_of_a_lost_lease_is_dropped(bench: Bench) -> None:
    run = await claimed_before(bench, started=False)
    left_behind(bench, run, JournalState.AGENT_STARTED)
    run.state = bench.plane.add_run().state  # the server took it back; a new runner is about to have it
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert [completion.epoch for completion in run.completions] == [1]
    assert run.completions[0].outcome is not None and run.completions[0].outcome.kind is OutcomeKind.EXITED
    assert bench.left_over() == []


async def test_undelivered_reports_stay_for_the_next_start(bench: Bench) -> None:
    bench.plane.faults["complete"] = ["500"] * 1000
    run = bench.plane.add_run()
    async with bench.runner(shutdown_report_s=0.1) as runner:
        await bench.plane.until(lambda: "complete" in bench.plane.calls)
        runner.cancel()
    assert len(bench.left_over()) == 1 and run.completions == []
    bench.plane.faults["complete"] = []
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert run.completions[0].exit_code == 0 and bench.left_over() == []


async def test_a_report_the_server_refuses_for_its_size_is_cut(bench: Bench) -> None:
    bench.plane.faults["complete"] = ["refuse:PAYLOAD_TOO_LARGE"]
    run = bench.plane.add_run()
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert run.completions[0].timeline == () and run.completions[0].exit_code == 0


@pytest.mark.parametrize("code", ["NOT_FOUND", "BAD_REQUEST"])
async def test_a_report_nobody_will_ever_take_is_dropped(bench: Bench, code: str) -> None:
    run = await claimed_before(bench, started=True)
    left_behind(bench, run, JournalState.REPORTED, complete=CompleteRequest(run_id=run.run_id, epoch=1, exit_code=7))
    bench.plane.faults["complete"] = [f"refuse:{code}"]
    async with bench.runner():
        await bench.plane.until(lambda: "complete" in bench.plane.calls)
    assert run.completions == [] and bench.left_over() == []


async def test_a_release_is_retried(bench: Bench) -> None:
    run = await claimed_before(bench, started=False, max_attempts=1)
    request = ReleaseRequest(runner_id=run.state.runner_id or "", epoch=1, reason="not_started_start")
    left_behind(bench, run, JournalState.REPORTED, release=request)
    bench.plane.faults["release"] = ["500", "lost"]
    async with bench.runner(shutdown_report_s=20.0):
        await bench.plane.until(run.over.is_set)
    assert run.state.outcome is not None and run.state.outcome.reason == "attempts_exhausted"
    assert bench.left_over() == []


# --- failpoints


@pytest.mark.parametrize("name", NAMES)
async def test_a_failure_at_any_step_ends_or_retries_the_run(bench: Bench, name: str) -> None:
    """Whatever raises where: the runner lives on, the run ends with a reason, nothing is left, no agent runs twice."""
    agents = 0

    async def agent(call: Call) -> int:
        nonlocal agents
        agents += 1
        await asyncio.sleep(0)
        return 0

    bench.factory.programs["guest-agent"] = agent
    bench.plane.ttl_s = 1.5
    run = bench.plane.add_run(max_attempts=2)
    config = bench.config(failpoints=make_failpoints(f"{name}=raise"))
    async with running_runner(config, bench.factory):
        if name in ("claims.before_claim", "completion.before_report"):
            await bench.plane.until(lambda: ("poll" if name.startswith("claims") else "lease") in bench.plane.calls)
        else:
            await bench.plane.until(run.over.is_set)
    async with bench.runner(shutdown_report_s=20.0):  # the next start completes what is left
        await bench.plane.until(lambda: bench.plane.expire() or run.over.is_set())
    assert run.state.status.terminal and agents <= 1
    assert bench.left_over() == []


def make_failpoints(text: str):
    from vm0.runner.failpoints import Failpoints

    return Failpoints.parse(text)


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("exit:7", 7)])
def test_a_failpoint_ends_the_process(action: str, code: int) -> None:
    script = (
        "import asyncio; from vm0.runner.failpoints import Failpoints\n"
        f"asyncio.run(Failpoints.parse('executor.bridged={action}')('executor.bridged'))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == code


# --- backends and logs


@pytest.mark.parametrize("backend", ["auto", "qemu", "firecracker"])
def test_no_backend_falls_to_less_isolation(bench: Bench, backend: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        make_factory(bench.config(backend=backend, images_dir=bench.folder / "images"))
    assert "--backend process" in caught.value.hint and "isolates nothing" in caught.value.hint


def test_the_named_backend_is_made(bench: Bench) -> None:
    assert make_factory(bench.config(backend="process")).backend == "process"


async def test_old_logs_go(bench: Bench) -> None:
    logs = bench.folder / "state" / "logs"
    logs.mkdir(parents=True)
    for index in range(10):
        (logs / f"system-{index}.log").write_text("x")
        os.utime(logs / f"system-{index}.log", (index, index))
    async with bench.runner(kept_logs=3):
        pass
    assert sorted(path.name for path in logs.iterdir()) == [f"system-{index}.log" for index in (7, 8, 9)]
