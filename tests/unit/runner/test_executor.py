"""Runs from claim to report, on the backend in memory: the whole story, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json

import pytest

from tests.support.fake_backend import Call, Signalled
from tests.support.fake_control_plane import SANDBOX_TOKEN, FakeRun
from tests.unit.runner.conftest import Bench
from vm0.contracts.manifest import ManifestEntry, StorageManifest
from vm0.contracts.runner import ResumeSession
from vm0.contracts.runs import Isolation, Outcome, OutcomeKind, RunStatus
from vm0.contracts.webhooks import CompleteRequest
from vm0.sandbox import Reason, SandboxOperationError, StartError

MANIFEST = StorageManifest(
    storages=(ManifestEntry(mount_path="/data", archive_url="/api/objects/a?signature=1"),),
    artifact=ManifestEntry(mount_path="/home/user/workspace", vas_storage_name="work", vas_version_id="v1"),
)


async def finished(bench: Bench, run: FakeRun, **settings: object) -> CompleteRequest:
    """Execute one run and return its report; afterwards nothing of it may be left."""
    async with bench.runner(**settings):
        async with asyncio.timeout(20):
            await run.over.wait()
    assert bench.left_over() == []
    assert len(run.completions) == 1
    return run.completions[0]


async def test_a_run_from_claim_to_report(bench: Bench) -> None:
    history = b'{"type":"user"}\n' * 1000
    url, digest = bench.plane.add_object(history)
    run = bench.plane.add_run(
        prompt="do it",
        storage_manifest=MANIFEST,
        environment={"KEY": "value"},
        secret_values=("s3cret-value",),
        resume_session=ResumeSession(session_id="abc", session_history_url=url, session_history_hash=digest),
    )
    report = await finished(bench, run)

    assert report.outcome is not None and report.outcome.kind is OutcomeKind.EXITED
    assert (report.exit_code, report.event_count, report.epoch) == (0, 3, 1)
    assert report.isolation is Isolation.PROCESS
    assert run.state.status is RunStatus.COMPLETED
    assert [step.phase for step in report.timeline] == [
        "claim_journal", "sandbox_create", "sandbox_start", "bridge", "storages", "session", "payload", "agent_mark",
        "agent_journal", "agent", "outcome", "logs",
    ]  # fmt: skip
    assert all(step.ok and step.duration_ms is not None for step in report.timeline)

    written = bench.factory.written
    runtime = f"/tmp/vm0-run-{run.run_id}"
    payload = json.loads(written[f"{runtime}/payload.json"])
    assert payload == {"prompt": "do it", "environment": {"KEY": "value"}, "secretValues": ["s3cret-value"]}
    sandbox = bench.factory.sandboxes[0]
    manifest = json.loads(written[f"{runtime}/storage-manifest.json"])
    assert manifest["storages"][0]["mountPath"] == f"/guest/{sandbox.sandbox_id}/data"
    folder = f"-guest-{sandbox.sandbox_id}-home-user-workspace"
    assert written[f"/home/user/.claude/projects/{folder}/abc.jsonl"] == history
    assert sandbox.guest_path(f"{runtime}/payload.json") in sandbox.private
    assert "Authorization" not in bench.plane.object_headers[0]
    log = bench.folder / "state" / "logs" / f"system-{run.run_id}.log"
    assert log.read_bytes() == b"agent output\n"


async def test_no_token_reaches_the_guest(bench: Bench) -> None:
    seen: list[str] = []

    async def agent(call: Call) -> int:
        seen.append(json.dumps(dict(call.env)) + json.dumps(call.request.argv))
        seen.extend(data.decode() for data in call.sandbox.files.values())
        return 0

    bench.factory.programs["guest-agent"] = agent
    run = bench.plane.add_run(storage_manifest=MANIFEST)
    await finished(bench, run)
    assert seen and not any(SANDBOX_TOKEN in text or "vm0_runner" in text for text in seen)
    for path in (bench.folder / "state").rglob("*"):
        assert not path.is_file() or SANDBOX_TOKEN.encode() not in path.read_bytes()


def outcome_of(run: FakeRun) -> Outcome:
    found = run.completions[0].outcome
    assert found is not None
    return found


def program(name: str, **ending: object):
    """A guest-agent that ends in one way."""

    async def agent(call: Call) -> int:
        match name:
            case "exit":
                code = ending["code"]
                assert isinstance(code, int)
                if "outcome" in ending:
                    call.write_outcome(**ending["outcome"])  # type: ignore[arg-type]
                return code
            case "signal":
                raise Signalled(11)
            case "hang":
                await asyncio.Event().wait()
            case "flush":  # ends properly when it is told to
                await call.terminated.wait()
                call.write_outcome(kind="exited", exitCode=143, reason="terminated", eventCount=7)
                return 143
            case "crash":
                asyncio.get_running_loop().create_task(call.sandbox.crash("the VMM is gone"))
                await asyncio.Event().wait()
            case "flood":
                for _ in range(64):
                    await call.write(b"x" * 65536)
        return 0

    return agent


@pytest.mark.parametrize(
    ("agent", "timeout_s", "kind", "reason", "code"),
    [
        (program("exit", code=0), 60, OutcomeKind.EXITED, "agent_report_missing", 0),
        (program("exit", code=3, outcome={"kind": "exited", "exitCode": 3}), 60, OutcomeKind.EXITED, None, 3),
        (program("exit", code=3, outcome={"kind": "exited", "exitCode": 0}), 60, OutcomeKind.EXITED,
         "agent_report_disagrees", 3),
        (program("exit", code=137, outcome={"kind": "signalled", "signal": 9}), 60, OutcomeKind.SIGNALLED, None, None),
        (program("exit", code=1, outcome={"kind": "nonsense"}), 60, OutcomeKind.EXITED, "agent_report_missing", 1),
        (program("signal"), 60, OutcomeKind.SIGNALLED, "agent_signalled", None),
        (program("hang"), 1, OutcomeKind.TIMED_OUT, "run_timeout", None),
        (program("flush"), 1, OutcomeKind.TIMED_OUT, "run_timeout", None),
        (program("crash"), 60, OutcomeKind.LOST, "sandbox_crashed", None),
        (program("flood"), 60, OutcomeKind.EXITED, "agent_report_missing", 0),
    ],
)  # fmt: skip
async def test_each_end_of_the_agent(bench: Bench, agent, timeout_s, kind, reason, code) -> None:
    bench.factory.programs["guest-agent"] = agent
    run = bench.plane.add_run(timeout_seconds=timeout_s)
    report = await finished(bench, run)
    assert report.outcome is not None
    assert (report.outcome.kind, report.outcome.reason, report.exit_code) == (kind, reason, code)


async def test_the_log_on_the_host_is_bounded(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = program("flood")
    run = bench.plane.add_run()
    await finished(bench, run, log_limit_bytes=100_000)
    log = (bench.folder / "state" / "logs" / f"system-{run.run_id}.log").read_bytes()
    assert log.startswith(b"x" * 100_000 + b"\n[") and len(log) < 100_100


async def test_an_agent_that_outlives_its_limit_is_killed_from_the_host(bench: Bench) -> None:
    """The guest is supposed to enforce the limit; here it does not."""
    bench.factory.programs["guest-agent"] = program("hang")
    run = bench.plane.add_run(timeout_seconds=1)
    bench.factory.enforces_timeout = False
    report = await finished(bench, run)
    assert report.outcome is not None
    assert (report.outcome.kind, report.outcome.reason) == (OutcomeKind.TIMED_OUT, "run_timeout")


CRASHED = SandboxOperationError("op", Reason.CRASHED, "gone")
FAILURES = [
    ("create", SandboxOperationError("create", Reason.HOST, "disk full"), "not_started_sandbox_create"),
    ("start", StartError("boot", "no answer"), "not_started_sandbox_start"),
    ("exec", CRASHED, "not_started_storages"),
    ("write_file", CRASHED, "not_started_storages"),
]


@pytest.mark.parametrize(("operation", "error", "reason"), FAILURES)
async def test_a_failure_before_the_agent_gives_the_run_back(bench: Bench, operation, error, reason) -> None:
    bench.factory.fail[operation] = error
    run = bench.plane.add_run(storage_manifest=MANIFEST, max_attempts=3)
    async with bench.runner():
        await bench.plane.until(lambda: run.releases)
        bench.factory.fail.clear()
        async with asyncio.timeout(20):
            await run.over.wait()
    assert run.releases[0].reason == reason
    assert run.releases[0].timeline[-1].ok is False
    assert run.state.status is RunStatus.COMPLETED and run.state.epoch >= 2
    assert bench.left_over() == []


@pytest.mark.parametrize("operation", ["create", "start", "exec", "write_file", "start_process"])
async def test_a_phase_that_hangs_reaches_its_limit(bench: Bench, operation) -> None:
    limits = dataclasses.replace(
        bench.config().limits, create_s=0.1, start_s=0.1, storages_s=0.1, payload_s=0.1, agent_start_s=0.1
    )
    bench.factory.hang.add(operation)
    run = bench.plane.add_run(storage_manifest=MANIFEST, max_attempts=1)
    async with bench.runner(limits=limits):
        async with asyncio.timeout(20):
            await run.over.wait()
    assert bench.left_over() == []
    if operation == "start_process":
        assert outcome_of(run).reason == "sandbox_timeout"
        assert outcome_of(run).kind is OutcomeKind.UNKNOWN
    else:
        assert run.releases[0].reason.startswith("not_started_")
        assert "not done within 0.1 s" in (run.releases[0].detail or "")
        assert run.state.outcome is not None and run.state.outcome.reason == "attempts_exhausted"


async def test_an_agent_that_cannot_start_is_not_retried(bench: Bench) -> None:
    """The server was told that it starts, so nobody else may try."""
    del bench.factory.programs["guest-agent"]
    report = await finished(bench, bench.plane.add_run())
    assert report.outcome is not None
    assert (report.outcome.kind, report.outcome.reason) == (OutcomeKind.UNKNOWN, "agent_could_not_start")


async def test_a_wrong_history_is_not_given_to_the_agent(bench: Bench) -> None:
    url, _ = bench.plane.add_object(b"tampered")
    session = ResumeSession(
        session_id="abc", session_history_url=url, session_history_hash=hashlib.sha256(b"original").hexdigest()
    )
    run = bench.plane.add_run(resume_session=session, max_attempts=1)
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert run.releases[0].reason == "not_started_session"
    assert "start_process" not in bench.factory.operations


async def test_a_failed_download_shows_its_output_without_secrets(bench: Bench) -> None:
    async def download(call: Call) -> int:
        await call.write(b"GET /api/objects/a/b?expires=1&signature=deadbeef failed, key is s3cret-value\n")
        return 1

    bench.factory.programs["guest-download"] = download
    run = bench.plane.add_run(storage_manifest=MANIFEST, secret_values=("s3cret-value",), max_attempts=1)
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    detail = run.releases[0].detail or ""
    assert "GET /api/objects/a/b?… failed, key is ***" in detail and "deadbeef" not in detail


CANCEL_POINTS = ["create", "start", "exec", "write_file"]


@pytest.mark.parametrize("operation", CANCEL_POINTS)
async def test_cancel_before_the_agent(bench: Bench, operation) -> None:
    bench.factory.hang.add(operation)
    bench.plane.ttl_s = 1.5  # the cancel is told by a renewal
    run = bench.plane.add_run(storage_manifest=MANIFEST)
    limits = dataclasses.replace(bench.config().limits, create_s=30, start_s=30, storages_s=30)
    async with bench.runner(limits=limits):
        await bench.factory.reached(operation)
        run.state = dataclasses.replace(run.state, cancel_requested=True)
        await bench.plane.until(run.over.is_set)
    assert run.state.status is RunStatus.CANCELLED
    assert outcome_of(run).kind is OutcomeKind.CANCELLED
    assert bench.left_over() == []


@pytest.mark.parametrize("agent", ["flush", "hang"])
async def test_cancel_while_the_agent_runs(bench: Bench, agent) -> None:
    bench.factory.programs["guest-agent"] = program(agent)
    bench.plane.ttl_s = 1.5
    run = bench.plane.add_run()
    async with bench.runner():
        await bench.factory.reached("running guest-agent")
        run.state = dataclasses.replace(run.state, cancel_requested=True)
        await bench.plane.until(run.over.is_set)
    report = run.completions[0]
    assert report.outcome is not None and report.outcome.kind is OutcomeKind.CANCELLED
    assert report.event_count == (7 if agent == "flush" else None)
    assert bench.left_over() == []


async def test_cancel_of_a_guest_that_does_not_react_kills_the_sandbox(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = program("hang")
    bench.factory.hang.add("cancel")
    bench.plane.ttl_s = 1.5
    run = bench.plane.add_run()
    async with bench.runner():
        await bench.factory.reached("running guest-agent")
        run.state = dataclasses.replace(run.state, cancel_requested=True)
        await bench.plane.until(run.over.is_set)
    assert outcome_of(run).kind is OutcomeKind.CANCELLED
    assert bench.factory.operations.index("kill") > bench.factory.operations.index("cancel")
    assert bench.left_over() == []


async def test_a_lost_lease_kills_the_sandbox_and_writes_nothing(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = program("hang")
    bench.plane.ttl_s = 1.5
    run = bench.plane.add_run()
    async with bench.runner():
        await bench.factory.reached("running guest-agent")
        run.state = dataclasses.replace(run.state, epoch=run.state.epoch + 1)
        sandbox = bench.factory.sandboxes[0]
        async with asyncio.timeout(10):
            await sandbox.death.wait()
    assert run.completions == [] and run.releases == []
    assert bench.left_over() == []


async def test_an_unreachable_server_fences_only_at_the_deadline(bench: Bench) -> None:
    bench.factory.programs["guest-agent"] = program("hang")
    bench.plane.ttl_s = 1.8
    run = bench.plane.add_run()
    async with bench.runner():
        await bench.factory.reached("running guest-agent")
        bench.plane.faults["lease"] = ["500"] * 1000
        loop = asyncio.get_running_loop()
        last_renewal = loop.time()
        sandbox = bench.factory.sandboxes[0]
        async with asyncio.timeout(10):
            await sandbox.death.wait()
        assert 0.5 < loop.time() - last_renewal < 1.8
        await bench.plane.until(lambda: run.completions)
    assert outcome_of(run).kind is OutcomeKind.LOST
    assert outcome_of(run).reason == "lease_expired"


async def test_a_report_outlives_a_server_that_is_away(bench: Bench) -> None:
    run = bench.plane.add_run()
    bench.plane.faults["complete"] = ["500", "lost", "garbage", "500"]
    async with bench.runner():
        await bench.plane.until(lambda: bench.plane.calls.count("complete") == 5)
    assert run.state.status is RunStatus.COMPLETED
    assert len(run.completions) == 3  # lost, garbage and the last one took effect; the first of them stands
    assert bench.left_over() == []


@pytest.mark.parametrize("operation", ["kill", "destroy"])
async def test_a_sandbox_that_cannot_be_removed_does_not_stop_the_report(bench: Bench, operation) -> None:
    bench.factory.fail[operation] = SandboxOperationError(operation, Reason.HOST, "stuck")
    run = bench.plane.add_run()
    async with bench.runner() as runner:
        await bench.plane.until(run.over.is_set)
        second = bench.plane.add_run()
        await bench.plane.announce()
        await bench.plane.until(second.over.is_set)
        assert runner.isolation is bench.factory.isolation
    assert run.state.status is RunStatus.COMPLETED


async def test_a_weaker_sandbox_than_demanded_is_refused(bench: Bench) -> None:
    run = bench.plane.add_run(isolation=Isolation.HARDWARE_VM, max_attempts=1)
    async with bench.runner():
        await bench.plane.until(run.over.is_set)
    assert "hardware-vm" in (run.releases[0].detail or "")
    assert bench.factory.sandboxes == []
