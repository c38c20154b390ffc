"""Agents that misbehave: each run ends with what was seen, and the runner works on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, command_run
from vm0.contracts.runs import AgentKind, OutcomeKind, RunRequest, RunStatus, StorageMount

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def claude_run(prompt: str, **options: object) -> RunRequest:
    return RunRequest(prompt=prompt, cli_agent_type=AgentKind.MOCK_CLAUDE, **options)  # type: ignore[arg-type]


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError(f"no VmHWM of {pid}")


async def test_exit_codes_and_signals_are_told_apart(cluster: Cluster) -> None:
    runner = cluster.runner(concurrency=4)
    await runner.start()
    runs = [await cluster.api.create_run(command_run(text)) for text in ("exit 0", "exit 7", "kill -SEGV $$")]
    good, bad, killed = [await cluster.finished(run.run_id) for run in runs]
    assert good.outcome is not None and (good.status, good.outcome.exit_code) == (RunStatus.COMPLETED, 0)
    assert bad.outcome is not None and (bad.status, bad.outcome.exit_code) == (RunStatus.FAILED, 7)
    assert killed.outcome is not None and killed.outcome.kind is OutcomeKind.SIGNALLED
    assert killed.outcome.signal == signal.SIGSEGV
    assert await runner.end() == 0


async def test_an_agent_that_never_exits_is_timed_out(cluster: Cluster) -> None:
    runner = cluster.runner()
    await runner.start()
    run = await cluster.api.create_run(claude_run("@stuck-tool-deaf", timeout_seconds=2))
    view = await cluster.finished(run.run_id, 60)
    assert view.outcome is not None and view.outcome.kind is OutcomeKind.TIMED_OUT
    assert view.status is RunStatus.FAILED
    page = await cluster.api.events(run.run_id, after=-1)
    assert [event["type"] for event in page.events] == ["system", "assistant"]
    assert await runner.end() == 0
    assert cluster.leftovers() == []


@pytest.mark.parametrize("prompt", ["@stuck-tool", "@stuck-tool-deaf", "@stuck-tool-closed-stdout-deaf"])
async def test_cancel_ends_whatever_the_agent_does(cluster: Cluster, prompt: str) -> None:
    runner = cluster.runner()
    await runner.start()
    run = await cluster.api.create_run(claude_run(prompt))
    async with asyncio.timeout(20):
        while not (await cluster.api.events(run.run_id, after=-1, wait_s=5)).events:
            pass
    await cluster.api.cancel(run.run_id)
    view = await cluster.finished(run.run_id)
    assert view.status is RunStatus.CANCELLED
    assert view.outcome is not None and view.outcome.kind is OutcomeKind.CANCELLED
    assert await runner.end() == 0
    assert cluster.leftovers() == []


@pytest.mark.parametrize("lease_ttl_s", [30.0])
async def test_a_cancellation_is_heard_at_once_and_not_at_the_next_renewal(cluster: Cluster) -> None:
    runner = cluster.runner()
    await runner.start()
    run = await cluster.api.create_run(command_run("echo on; exec sleep 1000"))
    async with asyncio.timeout(20):
        while not (await cluster.api.events(run.run_id, after=-1, wait_s=5)).events:
            pass
    started = time.monotonic()
    await cluster.api.cancel(run.run_id)
    assert (await cluster.finished(run.run_id)).status is RunStatus.CANCELLED
    assert time.monotonic() - started < 6, "the next renewal would have come after 10 s"
    assert await runner.end() == 0


@pytest.mark.parametrize(
    ("prompt", "last"),
    [("@orphan-pipe", "result"), ("@hang-after-result-deaf", "result"), ("@no-result", "system")],
)
async def test_an_agent_that_ends_in_an_odd_way_has_its_real_end(cluster: Cluster, prompt: str, last: str) -> None:
    """A result that was given counts; a missing one is not made up."""
    runner = cluster.runner()
    await runner.start()
    run = await cluster.api.create_run(claude_run(prompt))
    view = await cluster.finished(run.run_id, 90)
    assert view.outcome is not None and (view.outcome.kind, view.outcome.exit_code) == (OutcomeKind.EXITED, 0), view
    page = await cluster.api.events(run.run_id, after=-1)
    assert page.complete and page.events[-1]["type"] == last
    assert await runner.end() == 0
    assert cluster.leftovers() == []


async def test_output_that_is_not_text_is_kept_readable(cluster: Cluster) -> None:
    runner = cluster.runner()
    await runner.start()
    run = await cluster.api.create_run(command_run(r"printf 'good\n\377\376bad\nno newline'"))
    view = await cluster.finished(run.run_id)
    assert view.status is RunStatus.COMPLETED
    page = await cluster.api.events(run.run_id, after=-1)
    assert [event["text"] for event in page.events if event["type"] == "output"] == [
        "good", "\ufffd\ufffdbad", "no newline",
    ]  # fmt: skip
    assert await runner.end() == 0


@pytest.mark.timeout(420)
@pytest.mark.parametrize("lease_ttl_s", [30.0])
async def test_an_agent_that_floods_a_gibibyte_harms_nobody(cluster: Cluster) -> None:
    """The flood ends, memory of runner and server stays bounded, and a run beside it is not held up."""
    runner = cluster.runner(concurrency=2)
    await runner.start()
    assert runner.process is not None and cluster.server is not None and cluster.server.process is not None
    flood = await cluster.api.create_run(command_run("head -c 1073741824 /dev/zero | tr '\\0' 'x' | fold -w 1000"))
    async with asyncio.timeout(30):
        while not (await cluster.api.events(flood.run_id, after=-1, wait_s=5, limit=1)).events:
            pass
    started = time.monotonic()
    beside = await cluster.finished((await cluster.api.create_run(command_run("echo hello"))).run_id)
    assert beside.status is RunStatus.COMPLETED
    assert time.monotonic() - started < 20
    view = await cluster.finished(flood.run_id, 360)
    assert view.outcome is not None and view.status.terminal
    assert view.outcome.kind is OutcomeKind.EXITED or view.outcome.reason == "events_overflow", view.outcome
    for process in (runner.process, cluster.server.process):
        assert rss_kib(process.pid) < 400 * 1024
    assert await runner.end() == 0
    assert cluster.leftovers() == []


async def test_a_secret_is_seen_nowhere(cluster: Cluster) -> None:
    """Raw, base64 and percent-encoded: not in events, logs, the database, nor any file of server or runner."""
    secret = "s3cr3t-" + os.urandom(9).hex() + "/+="
    runner = cluster.runner()
    await runner.start()
    prompt = 'echo "$KEY"; printf %s "$KEY" | base64; printf %s "$KEY" >&2; env'
    run = await cluster.api.create_run(command_run(prompt, secrets={"KEY": secret}))
    view = await cluster.finished(run.run_id)
    assert view.status is RunStatus.COMPLETED
    page = await cluster.api.events(run.run_id, after=-1)
    assert any("***" in str(event) for event in page.events)
    assert await runner.end() == 0
    assert await cluster.server.end() == 0  # type: ignore[union-attr]  # the database is closed and merged
    found = [
        str(path)
        for path in cluster.folder.rglob("*")
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes()
    ]
    assert found == []


async def test_resume_continues_the_session_on_the_changed_folder(cluster: Cluster) -> None:
    runner = cluster.runner()
    await runner.start()
    mount = StorageMount(name="project", mount_path="/home/user/workspace")
    first = await cluster.api.create_run(claude_run("echo one > file", artifact=mount))
    ended = await cluster.finished(first.run_id)
    assert ended.status is RunStatus.COMPLETED and ended.checkpoint is not None
    second = await cluster.api.create_run(claude_run("cat file; echo two >> file", resume_run_id=first.run_id))
    again = await cluster.finished(second.run_id)
    assert again.status is RunStatus.COMPLETED and again.checkpoint is not None, again
    assert again.checkpoint.cli_agent_session_id == ended.checkpoint.cli_agent_session_id
    assert again.checkpoint.artifact_version != ended.checkpoint.artifact_version
    page = await cluster.api.events(second.run_id, after=-1)
    assert any("one" in str(event) for event in page.events)
    assert await runner.end() == 0
