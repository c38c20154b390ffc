"""`vm0 run --server` and `vm0 runs` against a real server; what a runner would do is done by the test."""

from __future__ import annotations

import asyncio
import json
import pathlib
import signal

import pytest

from tests.unit.cli.conftest import EXITED, Cli, ScriptedRunner, Served, ended, json_lines
from vm0.cli.api import ApiClient
from vm0.contracts.codec import decode
from vm0.contracts.runs import AgentKind, Outcome, OutcomeKind, RunRequest, RunStatus, RunView, TimelineStep
from vm0.server.config import ServerConfig
from vm0.server.service import running_server

INIT = {"type": "system", "subtype": "init", "session_id": "s1"}
SAID = {"type": "assistant", "message": {"content": [{"type": "text", "text": "I \x1b[31mlook"}]}}
RESULT = {"type": "result", "subtype": "success", "result": "all done"}
STEPS = (
    TimelineStep(phase="start", started_at_ms=1, duration_ms=12),
    TimelineStep(phase="agent", started_at_ms=2, duration_ms=3400),
)


async def test_text_mode_has_the_result_on_stdout_and_the_talk_on_stderr(
    cli: Cli, served: Served, runner: ScriptedRunner
) -> None:
    running = asyncio.create_task(cli.run("run", "do it", **served.variables))
    context = await runner.claim()
    await runner.lease(STEPS[0])
    await runner.events(INIT, SAID, RESULT)
    await runner.complete(EXITED, event_count=3, steps=STEPS)
    code, stdout, stderr = await running
    assert (code, stdout) == (0, "all done\n")
    lines = stderr.splitlines()
    assert f"vm0: run {context.run_id} on {served.url}" in lines
    assert {"· start 12 ms", "· agent 3.40 s", "* session s1", "I look"} <= set(lines)
    assert lines[-3].startswith(f"vm0: run {context.run_id}: completed, exited with 0")
    assert lines[-2] == "vm0: isolation: process (none: the agent ran as a local process)"
    assert lines[-1].startswith("vm0: checkpoint: ")


async def test_json_mode_is_ndjson_that_ends_with_the_run(cli: Cli, served: Served, runner: ScriptedRunner) -> None:
    words = ["run", "--json", "--env", "A=1", "--secret", "B", "--timeout", "77", "--isolation", "process", "do it"]
    running = asyncio.create_task(cli.run(*words, B="hush hush", **served.variables))
    context = await runner.claim()
    await runner.events(INIT, RESULT)
    await runner.complete(EXITED, event_count=2, steps=STEPS)
    code, stdout, _ = await running
    records = json_lines(stdout)
    assert code == 0
    events = [record["event"] for record in records if record["type"] == "event"]
    assert [event["sequenceNumber"] for event in events] == [0, 1]
    phases = {record["phase"]: record["durationMs"] for record in records if record["type"] == "phase"}
    assert phases["start"] == 12 and phases["agent"] == 3400 and "queued" in phases
    last = records[-1]
    assert last.pop("type") == "run"
    view = decode(RunView, last)
    assert (view.run_id, view.status, view.outcome) == (context.run_id, RunStatus.COMPLETED, EXITED)
    assert (context.environment, context.secret_values) == ({"A": "1", "B": "hush hush"}, ("hush hush",))
    assert context.timeout_seconds == 77
    assert "hush" not in stdout


async def test_stdout_of_a_command_is_stdout(cli: Cli, served: Served, runner: ScriptedRunner) -> None:
    running = asyncio.create_task(cli.run("run", "--agent", "command", "x", **served.variables))
    context = await runner.claim()
    assert context.cli_agent_type is AgentKind.COMMAND
    await runner.events(
        {"type": "output", "stream": "stdout", "text": "data é"},
        {"type": "output", "stream": "stderr", "text": "talk"},
        {"type": "result", "subtype": "error", "is_error": True, "exit_code": 3},
    )
    await runner.complete(Outcome(kind=OutcomeKind.EXITED, exit_code=3), event_count=3)
    code, stdout, stderr = await running
    assert (code, stdout) == (3, "data é\n")
    assert "  ! talk" in stderr.splitlines()


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(kind=OutcomeKind.EXITED, exit_code=42), 42),
        (Outcome(kind=OutcomeKind.SIGNALLED, signal=11), 139),
        (Outcome(kind=OutcomeKind.TIMED_OUT), 124),
        (Outcome(kind=OutcomeKind.UNKNOWN, reason="sandbox_crashed", detail="it is gone"), 125),
    ],
)
async def test_exit_codes(outcome: Outcome, code: int, cli: Cli, served: Served, runner: ScriptedRunner) -> None:
    running = asyncio.create_task(cli.run("run", "do it", **served.variables))
    await runner.claim()
    await runner.lease()
    await runner.complete(outcome)
    assert (await running)[0] == code


async def test_a_reader_that_goes_away_ends_the_command(cli: Cli, served: Served, runner: ScriptedRunner) -> None:
    process = await cli.start("run", "--agent", "command", "x", **served.variables)
    await runner.claim()
    await runner.lease()
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]  # the reader's end of the pipe
    await runner.events({"type": "output", "stream": "stdout", "text": "nobody reads this"})
    assert (await process.wait()) == 141
    assert process.stderr is not None
    assert "Traceback" not in (await process.stderr.read()).decode()


async def test_a_gap_in_the_events_is_told(cli: Cli, served: Served, runner: ScriptedRunner) -> None:
    running = asyncio.create_task(cli.run("run", "do it", **served.variables))
    await runner.claim()
    await runner.events(INIT)
    await runner.events(RESULT, first=2)
    await runner.complete(EXITED, event_count=3)
    _, stdout, stderr = await running
    assert stdout == ""
    assert "events are missing: number 1 never arrived" in stderr


async def test_the_first_interrupt_cancels_and_waits(cli: Cli, served: Served, runner: ScriptedRunner) -> None:
    process = await cli.start("run", "do it", **served.variables)
    await runner.claim()
    await runner.lease()
    await runner.events(INIT)
    await _said(process, "session s1")
    process.send_signal(signal.SIGINT)
    await _said(process, "cancelling the run")
    async with asyncio.timeout(20):
        while not (await runner.lease()).cancel_requested:
            pass
    assert process.returncode is None
    await runner.complete(Outcome(kind=OutcomeKind.CANCELLED, reason="cancel_requested"), event_count=1)
    code, _, stderr = await ended(process)
    assert code == 130
    assert "cancelled (cancel_requested)" in stderr


async def test_the_second_interrupt_leaves(cli: Cli, served: Served, runner: ScriptedRunner, client: ApiClient) -> None:
    process = await cli.start("run", "do it", **served.variables)
    context = await runner.claim()
    await runner.lease()
    await runner.events(INIT)
    await _said(process, "session s1")
    process.send_signal(signal.SIGINT)
    await _said(process, "cancelling the run")
    process.send_signal(signal.SIGINT)
    code, _, stderr = await ended(process)
    assert code == 130
    assert f"left; `vm0 runs show {context.run_id}`" in stderr
    assert (await client.run(context.run_id)).status is RunStatus.RUNNING


async def _said(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while text not in (line := (await process.stderr.readline()).decode()):
            assert line, f"vm0 ended without saying {text!r}"


async def test_a_server_that_is_restarted_in_the_middle(tmp_path: pathlib.Path, cli: Cli) -> None:
    from vm0.server.tokens import create_token

    config = ServerConfig(state_dir=tmp_path / "server", shutdown_grace_s=0.5)
    tokens = create_token(config.state_dir, "user"), create_token(config.state_dir, "runner")
    async with running_server(config) as handle:
        served = Served(handle, *tokens)
        runner = ScriptedRunner(served)
        process = await cli.start("run", "do it", **served.variables)
        await runner.claim()
        await runner.lease()
        await runner.events(INIT)
        await _said(process, "session s1")
    await _said(process, "trying again")
    async with running_server(config, port=handle.port) as handle:
        await runner.events(RESULT, first=1)
        await runner.complete(EXITED, event_count=2)
        code, stdout, _ = await ended(process)
    assert (code, stdout) == (0, "all done\n")


async def test_a_wrong_token(cli: Cli, served: Served) -> None:
    for token, said in ((served.runner_token, "hint: "), ("vm0_user_wrong", "check VM0_TOKEN")):
        code, stdout, stderr = await cli.run("runs", "ls", VM0_SERVER_URL=served.url, VM0_TOKEN=token)
        assert (code, stdout) == (1, "")
        assert stderr.startswith("error: ") and said in stderr


async def test_the_token_file_wins_over_the_environment(cli: Cli, served: Served, tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text(f"{served.user_token}\n")
    words = ["runs", "ls", "--server", f"{served.url}/", "--token-file", str(tmp_path / "token"), "--json"]
    code, stdout, _ = await cli.run(*words, VM0_TOKEN="wrong")
    assert (code, json.loads(stdout)) == (0, {"runs": []})


async def test_a_pending_run_says_that_there_is_no_runner(cli: Cli, served: Served) -> None:
    process = await cli.start("run", "--group", "a/b", "--isolation", "hardware-vm", "x", **served.variables)
    await _said(process, "no runner of group a/b with isolation `hardware-vm` or better is connected")
    process.send_signal(signal.SIGTERM)
    code, _, stderr = await ended(process)
    assert code == 130, stderr  # a run in the queue is cancelled at once


async def _submitted(client: ApiClient, count: int) -> list[RunView]:
    return [await client.create_run(RunRequest(prompt=f"prompt {number}")) for number in range(count)]


async def test_runs_ls_show_cancel_logs(cli: Cli, served: Served, client: ApiClient, runner: ScriptedRunner) -> None:
    first, second, third = await _submitted(client, 3)
    code, stdout, _ = await cli.run("runs", "ls", "--limit", "2", **served.variables)
    assert (code, [line.split()[0] for line in stdout.splitlines()]) == (
        0,
        ["RUN", third.run_id[:8], second.run_id[:8]],
    )

    context = await runner.claim()
    assert context.run_id == first.run_id
    bad = TimelineStep(phase="agent", started_at_ms=1, duration_ms=5, ok=False, detail="it broke")
    await runner.lease()
    await runner.events(SAID, first=0)
    await runner.complete(Outcome(kind=OutcomeKind.EXITED, exit_code=1), event_count=1, steps=(STEPS[0], bad))
    code, stdout, _ = await cli.run("runs", "show", first.run_id[:13].upper(), **served.variables)
    assert code == 0
    assert "outcome       exited with 1" in stdout
    (marked,) = [line.split() for line in stdout.splitlines() if line.startswith(">")]
    assert marked[3:] == ["agent", "5", "ms", "it", "broke"]
    code, stdout, _ = await cli.run("runs", "logs", first.run_id, "--follow", **served.variables)
    assert (code, stdout) == (0, "I look\n")
    code, stdout, _ = await cli.run("runs", "logs", first.run_id, "--json", **served.variables)
    assert json_lines(stdout) == [{**SAID, "sequenceNumber": 0}]

    code, stdout, _ = await cli.run("runs", "cancel", second.run_id, **served.variables)
    assert (code, stdout) == (0, f"run {second.run_id} is cancelled\n")
    code, stdout, _ = await cli.run("runs", "cancel", second.run_id, "--json", **served.variables)
    assert decode(RunView, json.loads(stdout)).status is RunStatus.CANCELLED
    code, stdout, _ = await cli.run("runs", "ls", "--status", "pending", "--json", **served.variables)
    assert [run["runId"] for run in json.loads(stdout)["runs"]] == [third.run_id]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("abc", "is too short"),
        ("ffff", "no run starts with 'ffff'"),
        ("00000000-0000-4000-8000-000000000000", "not found"),
        ("../../etc/passwd/aaaaaaaaaaaaaaaaaaaa", "no run starts with"),
    ],
)
async def test_unknown_runs(run: str, said: str, cli: Cli, served: Served) -> None:
    code, stdout, stderr = await cli.run("runs", "show", run, **served.variables)
    assert (code, stdout) == (1, "")
    assert said in stderr and "hint: " in stderr


async def test_backend_is_not_for_a_remote_run(cli: Cli, served: Served) -> None:
    code, _, stderr = await cli.run("run", "--backend", "process", "x", **served.variables)
    assert code == 2
    assert "--isolation" in stderr


async def test_folders_are_uploaded_and_mounted(
    cli: Cli, served: Served, runner: ScriptedRunner, folder: pathlib.Path
) -> None:
    words = ["run", "--artifact", f"{folder}:/work", "--storage", f"{folder / 'src'}:/data", "do it"]
    running = asyncio.create_task(cli.run(*words, **served.variables))
    context = await runner.claim()
    manifest = context.storage_manifest
    assert context.working_dir == "/work"
    assert manifest is not None and manifest.artifact is not None
    assert manifest.artifact.mount_path == "/work" and manifest.artifact.archive_url
    assert [entry.mount_path for entry in manifest.storages] == ["/data"]
    await runner.complete(EXITED)
    code, _, stderr = await running
    assert code == 0
    assert f"vm0: {folder}: 3 files, version " in stderr


async def test_the_run_is_printed_even_if_its_output_cannot_be_written(
    cli: Cli, served: Served, runner: ScriptedRunner, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ["run", "--json", "--artifact", str(folder), "--output", str(tmp_path / "out"), "do it"]
    running = asyncio.create_task(cli.run(*words, **served.variables))
    await runner.claim()
    await runner.complete(EXITED)  # its checkpoint has no artifact
    code, stdout, stderr = await running
    assert code == 125
    assert json_lines(stdout)[-1]["status"] == "completed"
    assert "error: the run has no artifact" in stderr
