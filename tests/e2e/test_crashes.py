"""Kill, stop and cut at every step: a run ends exactly once, is executed by one runner at a time, nothing stays."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, command_run, cutting_proxy
from vm0.contracts.runs import OutcomeKind, RunStatus, RunView
from vm0.runner.failpoints import NAMES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

# From here on the agent may have run, as far as the journal knows, so the run is not given out again.
AGENT_JOURNALED = NAMES.index("executor.agent_start_journaled")
OUTCOME_KEPT = NAMES.index("executor.outcome_journaled")


def traced(folder: Path) -> str:
    """A command that leaves a line when it starts and one when it ends: who overlaps with whom can be read off."""
    return f"echo start >> {folder}/trace; sleep 0.1; echo end >> {folder}/trace"


def executions(folder: Path) -> list[str]:
    trace = folder / "trace"
    return trace.read_text().split() if trace.exists() else []


@pytest.mark.parametrize("name", NAMES)
async def test_runner_killed_at_each_step_and_started_again(cluster: Cluster, name: str) -> None:
    run = await cluster.api.create_run(command_run(traced(cluster.folder)))
    doomed = cluster.runner(failpoints=f"{name}=kill")
    await doomed.start()
    assert await doomed.wait() == -signal.SIGKILL, doomed.log_text()
    successor = cluster.runner()
    await successor.start()
    await successor.ready()
    view = await cluster.finished(run.run_id)
    assert await successor.end() == 0, successor.log_text()

    seen = executions(cluster.folder)
    if NAMES.index(name) < AGENT_JOURNALED:
        assert view.status is RunStatus.COMPLETED, view
        assert view.attempts == (1 if name == "claims.before_claim" else 2)
        assert seen == ["start", "end"]
    elif NAMES.index(name) < OUTCOME_KEPT:
        assert view.status is RunStatus.FAILED, view
        assert view.outcome is not None and view.outcome.kind is OutcomeKind.LOST
        assert view.outcome.reason in ("runner_crashed", "lease_expired")
        assert view.outcome.exit_code is None, "nobody saw the end of the agent"
        assert seen.count("start") <= 1 and view.attempts == 1
    else:
        assert view.status is RunStatus.COMPLETED, view
        assert view.outcome is not None and view.outcome.exit_code == 0
        assert seen == ["start", "end"] and view.attempts == 1
    assert cluster.leftovers() == []


@pytest.mark.parametrize(
    "name", [NAMES[0], "executor.sandbox_started", "executor.agent_started", "executor.agent_ended"]
)
async def test_a_step_that_fails_fails_the_run_with_a_reason_and_not_the_runner(cluster: Cluster, name: str) -> None:
    runner = cluster.runner(failpoints=f"{name}=raise")
    await runner.start()
    run = await cluster.api.create_run(command_run("true", max_attempts=1))
    if name == NAMES[0]:
        await asyncio.wait_for(_logged(runner, "failpoint"), 10)
        assert (await cluster.api.run(run.run_id)).status is RunStatus.PENDING
        await cluster.api.cancel(run.run_id)
    view = await cluster.finished(run.run_id)
    assert view.status in (RunStatus.FAILED, RunStatus.CANCELLED)
    assert view.outcome is not None and view.outcome.reason
    assert await runner.end() == 0
    assert cluster.leftovers() == []


async def _logged(runner, text: str) -> None:
    while text not in runner.log_text():
        await asyncio.sleep(0.05)  # a log file has no event to wait for


@pytest.mark.parametrize("lease_ttl_s", [30.0])
async def test_server_killed_and_restarted_in_the_middle_of_a_run(cluster: Cluster) -> None:
    """The agent works on while the server is away; nothing it said is lost and the lease survives."""
    runner = cluster.runner()
    await runner.start()
    go = cluster.folder / "go"
    run = await cluster.api.create_run(
        command_run(f"echo before; while [ ! -e {go} ]; do sleep 0.05; done; for i in 1 2 3; do echo after $i; done")
    )
    async with asyncio.timeout(20):
        while not (page := await cluster.api.events(run.run_id, after=-1, wait_s=5)).events:
            pass
    assert page.events[0]["text"] == "before"
    assert cluster.server is not None
    await cluster.server.end(signal.SIGKILL)
    go.touch()
    await cluster.start_server()
    view = await cluster.finished(run.run_id)
    assert view.status is RunStatus.COMPLETED, (view, runner.log_text())
    page = await cluster.api.events(run.run_id, after=-1)
    assert [event["text"] for event in page.events if event["type"] == "output"] == [
        "before", "after 1", "after 2", "after 3",
    ]  # fmt: skip
    assert page.complete and page.missing is None
    assert await runner.end() == 0


async def test_a_runner_cut_off_from_the_server_stops_its_agent_before_its_lease_can_go_to_another(
    cluster: Cluster,
) -> None:
    runner = cluster.runner()
    await runner.start()
    trace = cluster.folder / "trace"
    prompt = f"trap 'echo end >> {trace}; exit' TERM; echo start >> {trace}; while :; do sleep 0.05; done"
    run = await cluster.api.create_run(command_run(prompt))
    async with asyncio.timeout(20):
        while not trace.exists():
            await asyncio.sleep(0.02)
    assert runner.process is not None
    runner.process.send_signal(signal.SIGSTOP)  # no renewal any more; the guest's own heartbeat is not the lease
    view = await cluster.finished(run.run_id)
    assert view.outcome is not None and (view.outcome.kind, view.outcome.reason) == (OutcomeKind.LOST, "lease_expired")
    runner.process.send_signal(signal.SIGCONT)
    assert await runner.end() == 0, runner.log_text()
    assert (await cluster.api.run(run.run_id)) == view, "a late writer is fenced"
    assert cluster.leftovers() == []


async def test_the_answer_to_a_claim_is_lost_on_the_wire(cluster: Cluster) -> None:
    cut = asyncio.Event()
    async with cutting_proxy(cluster.url, cut, b"/claim") as url:
        cut.set()
        runner = cluster.runner(url=url)
        await runner.start()
        run = await cluster.api.create_run(command_run(traced(cluster.folder)))
        view = await cluster.finished(run.run_id)
        assert not cut.is_set(), "the proxy saw no claim"
        assert view.status is RunStatus.COMPLETED and view.attempts == 1
        assert executions(cluster.folder) == ["start", "end"]
        assert await runner.end() == 0


async def test_the_answer_to_the_completion_is_lost_on_the_wire(cluster: Cluster) -> None:
    cut = asyncio.Event()
    async with cutting_proxy(cluster.url, cut, b"/complete") as url:
        cut.set()
        runner = cluster.runner(url=url)
        await runner.start()
        run = await cluster.api.create_run(command_run("exit 3"))
        view = await cluster.finished(run.run_id)
        assert view.outcome is not None and view.outcome.exit_code == 3
        assert await runner.end() == 0
        assert not cut.is_set() and cluster.leftovers() == []


async def test_sigterm_finishes_what_runs_and_claims_nothing_more(cluster: Cluster) -> None:
    runner = cluster.runner(concurrency=1)
    await runner.start()
    first = await cluster.api.create_run(command_run(traced(cluster.folder)))
    async with asyncio.timeout(20):
        while (await cluster.api.run(first.run_id)).status is RunStatus.PENDING:
            await asyncio.sleep(0.02)
    second = await cluster.api.create_run(command_run("true"))
    assert await runner.end(signal.SIGTERM) == 0
    assert (await cluster.api.run(first.run_id)).status is RunStatus.COMPLETED
    assert (await cluster.api.run(second.run_id)).status is RunStatus.PENDING


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lease_ttl_s", [30.0])
async def test_two_runners_race_for_500_runs(cluster: Cluster) -> None:
    """Each run is executed once, by one of them."""
    runners = [cluster.runner(f"r{n}", concurrency=4) for n in range(2)]
    for runner in runners:
        await runner.start()
    trace = cluster.folder / "trace"
    runs = [await cluster.api.create_run(command_run(f"echo {n} >> {trace}")) for n in range(500)]
    views: list[RunView] = [await cluster.finished(run.run_id, 240) for run in runs]
    assert {view.status for view in views} == {RunStatus.COMPLETED}
    assert sorted(map(int, trace.read_text().split())) == list(range(500))
    assert {view.attempts for view in views} == {1}
    for index, runner in enumerate(runners):
        assert await runner.end() == 0
        assert cluster.leftovers(f"r{index}") == []
