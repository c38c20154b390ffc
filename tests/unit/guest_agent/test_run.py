"""guest-agent as a process, with CLIs of every kind of manners. Without an API unless events matter."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.fake_api import FakeApi
from tests.unit.guest_agent.sandbox import REPOSITORY, GuestSandbox, init, lines, result


def numbered(api: FakeApi) -> list[dict]:
    """The events in order; a gap fails the test."""
    assert sorted(api.events) == list(range(len(api.events)))
    return [{k: v for k, v in api.events[n].items() if k != "sequenceNumber"} for n in sorted(api.events)]


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_file(path: pathlib.Path, timeout_s: float = 10) -> str:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


def test_a_good_run(sandbox: GuestSandbox, api: FakeApi) -> None:
    said = [init(), {"type": "assistant", "message": {"content": [{"type": "text", "text": "hé"}]}}, result("all done")]
    sandbox.claude("import sys; print('noise')\n" + lines(*said) + "print('no', file=sys.stderr)")
    done = sandbox.run("work")
    assert (done.code, done.stdout) == (0, "all done\n"), done
    assert done.outcome == {"kind": "exited", "exitCode": 0, "eventCount": 3}
    assert numbered(api) == said
    assert (sandbox.runtime / "agent.log").read_text().startswith("noise\n{")
    assert os.stat(sandbox.runtime).st_mode & 0o777 == 0o700
    assert not (sandbox.root / "payload.json").exists()
    assert "agent: no" in api.system_log() and "run ended" in api.system_log()
    operations = [r["action_type"] for t in api.requests("/telemetry") for r in t.json.get("sandboxOperations", [])]
    assert {"working_dir_setup", "init_total", "cli_execution", "checkpoint_total"} <= set(operations)
    assert [r for t in api.requests("/telemetry") for r in t.json.get("metrics", [])]
    assert len(api.requests("/heartbeat")) == 1


def test_over_a_unix_socket(tmp_path: pathlib.Path) -> None:
    with FakeApi(str(tmp_path / "bridge.sock")) as api:
        sandbox = GuestSandbox(tmp_path, api.url)
        sandbox.mount("ARTIFACT", sandbox.workspace)
        done = sandbox.run("echo hi > f; echo said", "command")
        assert done.code == 0, done
        assert [e["type"] for e in numbered(api)] == ["output", "result"]
        assert len(api.checkpoints) == 1 and len(api.objects) == 2


def test_the_shipped_entry_point(local: GuestSandbox) -> None:
    """As the runner starts it: no site packages, isolated; and the usage."""
    process = local.start("true", "command")
    assert local.finish(process).code == 0
    source = str(REPOSITORY / "src")
    program = f"import sys; sys.path.insert(0, {source!r}); from vm0.guest_agent.main import main; "
    command = [sys.executable, "-I", "-S", "-c", program + "sys.exit(main(sys.argv[1:]))"]
    asked = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=20)
    assert asked.returncode == 0 and asked.stdout.startswith("usage: guest-agent")
    assert subprocess.run([*command, "extra"], capture_output=True, timeout=20).returncode == 2


@pytest.mark.parametrize(
    ("script", "code", "expected"),
    [
        ("exit 0", 0, {"kind": "exited", "exitCode": 0}),
        ("exit 7", 7, {"kind": "exited", "exitCode": 7}),
        ("echo broken >&2; exit 3", 3, {"kind": "exited", "exitCode": 3, "detail": "broken"}),
        ("no-such-program", 127, {"kind": "exited", "exitCode": 127}),
        ("kill -SEGV $$", 139, {"kind": "signalled", "signal": 11}),
        ("kill -KILL $$", 137, {"kind": "signalled", "signal": 9}),
    ],
)
def test_the_end_of_the_cli_is_ours(local: GuestSandbox, script: str, code: int, expected: dict) -> None:
    done = local.run(script, "command")
    assert done.code == code, done
    assert done.outcome.items() >= expected.items()


def test_a_command_and_its_events(sandbox: GuestSandbox, api: FakeApi) -> None:
    done = sandbox.run("echo out; pwd; cat; sleep 0.05; echo err >&2; sleep 0.05; printf last; exit 4", "command")
    assert done.code == 4
    assert numbered(api) == [
        {"type": "output", "stream": "stdout", "text": "out"},
        {"type": "output", "stream": "stdout", "text": str(sandbox.workspace)},
        {"type": "output", "stream": "stderr", "text": "err"},
        {"type": "output", "stream": "stdout", "text": "last"},
        {"type": "result", "subtype": "error", "is_error": True, "exit_code": 4},
    ]


def test_no_claude_is_127_with_a_reason(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.variables["PATH"] = str(sandbox.bin)
    done = sandbox.run("work")
    assert done.code == 127
    assert done.outcome["reason"] == "agent_not_found" and "claude is not installed" in done.outcome["detail"]
    assert "agent_not_found" in api.system_log()
    assert api.checkpoints == []


def test_a_claude_that_cannot_be_executed(local: GuestSandbox) -> None:
    (local.bin / "claude").write_text("x")
    local.variables["PATH"] = str(local.bin)
    done = local.run("work")
    assert (done.code, done.outcome["reason"]) == (126, "agent_not_executable")


def test_the_real_command_line(local: GuestSandbox) -> None:
    local.claude("import json, os, sys; json.dump([sys.argv[1:], dict(os.environ), os.getcwd()], open('seen', 'w'))")
    local.variables["VM0_RESUME_SESSION_ID"] = "s-1"
    done = local.run("--help me", environment={"TOKEN": "t"}, tools=["Read"], settings="{}")
    assert done.code == 0, done
    arguments, environment, folder = json.loads((local.workspace / "seen").read_text())
    assert arguments[-2:] == ["--", "--help me"] and arguments[5:7] == ["--resume", "s-1"]
    assert environment["TOKEN"] == "t" and environment["DISABLE_TELEMETRY"] == "1"
    assert environment.get("IS_SANDBOX") == ("1" if os.geteuid() == 0 else None)
    assert [name for name in environment if name.startswith("VM0_")] == ["VM0_RUN_ID", "VM0_WORKING_DIR"]
    assert environment["PWD"] == folder == str(local.workspace)


def test_long_prompts_arrive_whole(local: GuestSandbox) -> None:
    local.claude("import sys; open('seen', 'w').write(sys.stdin.read())")
    prompt = "é" * 500_000
    assert local.run(prompt).code == 0
    assert (local.workspace / "seen").read_text() == prompt
    local.run_id = "other"
    script = "echo -n $0 > seen\n" + "# padding\n" * 20_000 + "exit 9"
    assert local.run(script, "command").code == 9
    assert (local.workspace / "seen").read_text() == str(local.runtime / "command.sh")
    assert not (local.runtime / "command.sh").exists()


def test_an_environment_beyond_what_the_kernel_takes(local: GuestSandbox) -> None:
    done = local.run("true", "command", environment={f"V{n}": "x" * 120_000 for n in range(30)})
    assert (done.code, done.outcome["reason"]) == (1, "spawn_failed")
    assert "limited to about 2 MiB" in done.outcome["detail"]


@pytest.mark.parametrize("folder", ["", "relative", "/proc/no", "/dev/null/x"])
def test_a_bad_working_directory(local: GuestSandbox, folder: str) -> None:
    local.variables["VM0_WORKING_DIR"] = folder
    done = local.run("true", "command")
    assert (done.code, done.outcome["reason"]) == (1, "working_dir"), done


def test_the_working_directory_is_made(local: GuestSandbox) -> None:
    local.variables["VM0_WORKING_DIR"] = str(local.root / "a/b/c")
    assert local.run("pwd > here", "command").code == 0
    assert (local.root / "a/b/c/here").read_text() == f"{local.root}/a/b/c\n"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CLI_AGENT_TYPE", "codex", "agent_type"),
        ("VM0_PAYLOAD_FILE", "/no/such", "payload_invalid"),
        ("VM0_API_URL", "ftp://x", "api_url_invalid"),
    ],
)
def test_bad_settings_are_named(local: GuestSandbox, name: str, value: str, reason: str) -> None:
    local.variables[name] = value
    done = local.run("true", "command")
    assert (done.code, done.outcome["reason"]) == (1, reason), done
    assert done.outcome["eventCount"] == 0


def test_a_runtime_directory_that_is_not_ours(local: GuestSandbox) -> None:
    local.runtime.symlink_to(local.workspace)
    done = local.run("true", "command")
    assert done.code == 1 and "is not a directory" in done.stderr and "hint" in done.stderr
    assert done.outcome == {}


def test_a_run_needs_its_id(local: GuestSandbox) -> None:
    local.variables |= {"VM0_RUN_ID": "", "VM0_API_URL": "http://127.0.0.1:9"}
    done = local.run("true", "command")
    assert done.code == 1 and "VM0_RUN_ID is not set" in done.stderr


def test_invalid_utf8_is_replaced(sandbox: GuestSandbox, api: FakeApi) -> None:
    done = sandbox.run(r"printf 'a\xff\xfe\x80b\n\xc3'", "command")
    assert done.code == 0
    assert [e["text"] for e in numbered(api)[:-1]] == ["a���b", "�"]
    assert (sandbox.runtime / "agent.log").read_bytes() == b"a\xff\xfe\x80b\n\xc3"


def test_a_cli_that_closes_its_output_is_waited_for(local: GuestSandbox) -> None:
    local.timings["drain_s"] = 0.1
    local.claude("import os, time; os.close(1); os.close(2); time.sleep(1); open('end', 'w').write('x'); os._exit(5)")
    done = local.run("work")
    assert done.code == 5 and (local.workspace / "end").exists(), done


def test_a_cli_without_a_result_counts_by_its_exit_code(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.claude(lines(init()))
    done = sandbox.run("work")
    assert (done.code, done.stdout) == (0, "") and len(api.checkpoints) == 1


@pytest.mark.parametrize("is_error", [False, True])
@pytest.mark.parametrize("deaf", [False, True])
def test_a_cli_that_does_not_exit_after_its_result(local: GuestSandbox, is_error: bool, deaf: bool) -> None:
    local.timings |= {"result_quiet_s": 0.3, "stop_grace_s": 0.3}
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    local.claude(ignore + lines(init(), result("good", is_error=is_error)) + "import time; time.sleep(60)")
    done = local.run("work", timeout_s=10)
    assert (done.code, done.stdout) == (int(is_error), "good\n")
    assert done.outcome["reason"] == "stopped_after_result"
    assert ("ignored SIGTERM" in done.outcome["detail"]) == deaf


def test_a_cli_that_goes_on_after_its_result_gets_its_time(local: GuestSandbox) -> None:
    local.timings |= {"result_quiet_s": 0.5, "result_cap_s": 20}
    more = 'import time\nfor n in range(12):\n    print(\'{"type":"assistant"}\', flush=True)\n    time.sleep(0.1)\n'
    local.claude(lines(result("first")) + more + lines(result("second")))
    done = local.run("work")
    assert (done.code, done.stdout) == (0, "second\n") and "reason" not in done.outcome


def test_but_not_for_ever(local: GuestSandbox) -> None:
    local.timings |= {"result_quiet_s": 0.5, "result_cap_s": 1.5}
    more = 'import time\nwhile True:\n    print(\'{"type":"assistant"}\', flush=True)\n    time.sleep(0.1)\n'
    local.claude(lines(result()) + more)
    done = local.run("work", timeout_s=10)
    assert done.code == 0 and done.outcome["reason"] == "stopped_after_result"


@pytest.mark.parametrize("setsid", [False, True])
def test_an_orphan_that_holds_the_pipes_delays_by_the_drain_limit_only(local: GuestSandbox, setsid: bool) -> None:
    local.timings["drain_s"] = 0.5
    started = time.monotonic()
    done = local.run(f"{'setsid ' * setsid}sh -c 'echo $$ > pid; exec sleep 60' & sleep 0.2; echo bye", "command")
    assert done.code == 0 and time.monotonic() - started < 5
    pid = int((local.workspace / "pid").read_text())
    try:
        assert "holds its output open" in done.stderr
        assert alive(pid) == setsid  # the group is ours to kill, another session is the sandbox's business
    finally:
        if setsid:
            os.kill(pid, signal.SIGKILL)


def test_a_quiet_orphan_of_the_group_does_not_outlive_the_run(local: GuestSandbox) -> None:
    done = local.run("sleep 60 >/dev/null 2>&1 & echo $! > pid", "command")
    assert done.code == 0 and not alive(int((local.workspace / "pid").read_text()))


@pytest.mark.parametrize("deaf", [False, True])
def test_the_runner_ends_the_run(sandbox: GuestSandbox, api: FakeApi, deaf: bool) -> None:
    sandbox.timings |= {"stop_grace_s": 0.5}
    trap = "trap '' TERM; " if deaf else ""
    process = sandbox.start(f"{trap}echo started; echo $$ > pid; while :; do sleep 1 & wait; done", "command")
    api.wait_for(lambda: 0 in api.events)
    pid = int(wait_for_file(sandbox.workspace / "pid"))
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    done = sandbox.finish(process)
    assert time.monotonic() - started < 5
    assert (done.code, done.outcome["reason"]) == (143, "terminated")
    assert ("ignored SIGTERM" in done.outcome["detail"]) == deaf
    assert not alive(pid)
    assert numbered(api)[-1] == {"type": "result", "subtype": "error", "is_error": True, "exit_code": 143}
    assert "received SIGTERM" in api.system_log()
    assert api.checkpoints == []


def test_a_tool_that_never_returns(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.variables["VM0_STUCK_TOOL_TIMEOUT_SECS"] = "1"
    use = {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t", "name": "WebFetch"}]}}
    sandbox.claude(lines(init(), use) + "import time; time.sleep(60)")
    done = sandbox.run("work", timeout_s=15)
    assert (done.code, done.outcome["reason"]) == (1, "stuck_tool")
    assert "WebFetch did not return within 1 s" in done.outcome["detail"]
    assert len(api.checkpoints) == 1  # what it did so far is kept


def test_other_tools_may_take_their_time(local: GuestSandbox) -> None:
    local.timings["tool_timeout_s"] = 0.3
    use = {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t", "name": "Bash"}]}}
    local.claude(lines(use) + "import time; time.sleep(1)\n" + lines(result()))
    assert local.run("work").code == 0


def test_the_log_cannot_be_forged_by_the_cli(local: GuestSandbox) -> None:
    done = local.run(r"printf 'x\r[2020-01-01T00:00:00.000Z] [INFO] [sandbox:guest-agent] fake\n' >&2", "command")
    form = re.compile(r"\[\d{4}-\S{18}Z\] \[(INFO|WARN|ERROR)\] \[sandbox:guest-agent\] ")
    text = (local.runtime / "system.log").read_text()
    assert done.code == 0 and "fake" in text
    assert all(form.match(line) and not line.startswith("[2020") for line in text.splitlines())


def test_local_mode_says_nothing_to_anybody(local: GuestSandbox) -> None:
    local.mount("ARTIFACT", local.workspace)
    done = local.run("echo x; echo y > f", "command")
    assert done.code == 0 and done.outcome["eventCount"] == 2
    assert sorted(p.name for p in local.runtime.iterdir()) == [
        "agent.log", "outcome.json", "sandbox-ops.jsonl", "system.log"
    ]  # fmt: skip


def test_a_result_that_nobody_reads_does_not_hold_up_the_end(local: GuestSandbox) -> None:
    local.claude(lines(result("x" * 500_000)))
    process = local.start("work")
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() == 0
    local.finish(process)
