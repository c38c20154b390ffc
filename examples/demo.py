"""`make demo`: an agent repairs a small project in a virtual machine of its own, and its session is resumed in another.

First `vm0 setup` makes this machine ready: Debian packages, the guest's image, a snapshot; a minute or two the first
time. The agent is `mock-claude`, which speaks Claude Code's stream-json and runs its prompt as a shell command: no
account is needed, and all the rest is the real thing: server, runner, virtual machine, guest agent, checkpoint. Every
step is checked; anything that is off ends the demo with exit code 1.

It needs root. Without it, `make demo ARGS=--process` shows the same with a plain local process, which isolates nothing.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

PROJECT = pathlib.Path(__file__).parent / "textstats"
BUG = "key=lambda item: (item[1], item[0])"
FIX = "key=lambda item: (-item[1], item[0])"
TIME_LIMIT_S = 300  # of one `vm0 run`; it takes a few seconds
SETUP_LIMIT_S = 1800  # a minute or two, but for the network

REPAIR = """
python3 -B -m unittest 2>&1 && echo "DEMO: the test passes already" && exit 1
echo "DEMO: the test fails, repairing textstats.py"
sed -i 's/(item\\[1\\], item\\[0\\])/(-item[1], item[0])/' textstats.py
python3 -B -m unittest 2>&1 || exit 1
echo "DEMO: repaired"
"""
LOOK_AGAIN = f"""
grep -qF -- '{FIX}' textstats.py || {{ echo "DEMO: the repair is not here"; exit 1; }}
python3 -B -m unittest 2>&1 || exit 1
echo "DEMO: the repaired file is here"
"""


class DemoError(Exception):
    """something is not as it must be"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--process", action="store_true", help="no virtual machine: a local process, isolates nothing")
    process = parser.parse_args().process
    if not process and os.geteuid() != 0:
        print("Virtual machines need root (network namespaces, taps, firewall rules): run `make demo` as root.\n"
              "Or see the same without any isolation, as plain local processes: make demo ARGS=--process",
              file=sys.stderr)  # fmt: skip
        return 1
    with tempfile.TemporaryDirectory(prefix="vm0-demo-") as scratch:
        show = Demo(pathlib.Path(scratch), process=process)
        try:
            show.run()
        except DemoError as exc:
            print(f"\nDEMO FAILED: {exc}", file=sys.stderr)
            return 1
    show.times()
    print("\nDemo done: both runs did what they must.")
    return 0


class Demo:
    """One performance. Virtual machines use the state directory of every other `vm0` command of this user, so that the
    image and the snapshot that it makes serve them too; processes one that is removed afterwards."""

    def __init__(self, scratch: pathlib.Path, *, process: bool) -> None:
        self.scratch, self.process = scratch, process
        self.backend = ["--backend", "process"] if process else []
        self.isolations = {"process"} if process else {"emulated-vm", "hardware-vm"}
        self.environment = {**os.environ, **({"VM0_HOME": str(scratch / "state")} if process else {})}
        self.seconds: dict[str, float] = {}
        self.phases: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        if not self.process:
            headline(
                "0. This machine",
                "vm0 setup installs the Debian packages that are missing, builds the guest's image, boots it once to",
                "check it, and makes the snapshot from which virtual machines are restored. What is there is used.",
            )
            self.setup()
        self.job()

    def setup(self) -> None:
        command = [sys.executable, "-m", "vm0.cli", "setup", "--yes"]
        print("$ vm0 setup --yes", flush=True)
        begun = time.monotonic()
        try:
            code = subprocess.run(command, env=self.environment, timeout=SETUP_LIMIT_S).returncode
        except subprocess.TimeoutExpired as exc:
            raise DemoError(f"vm0 setup did not end within {SETUP_LIMIT_S} s") from exc
        self.seconds["setup"] = time.monotonic() - begun
        check(code == 0, f"vm0 setup exited with {code}")

    def job(self) -> None:
        scratch = self.scratch
        project = scratch / "textstats"
        shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
        before = snapshot(project)
        check(BUG in before["textstats.py"], f"{PROJECT} has no bug to repair")

        headline(
            "1. An agent job on a project folder",
            "vm0 starts a server and a runner in its own process, uploads the folder, and queues a run. The runner",
            "claims it, makes a sandbox, fills it with the folder and starts the agent, which finds the",
            "failing test and repairs it. The changed folder is checkpointed on the server, and written back here.",
        )
        first = self.vm0_run(
            "first run", "--artifact", str(project), "--output", str(project), "--timeout", "120", REPAIR
        )
        check("DEMO: repaired" in first.tool_output, "the agent did not report the repair")

        headline("2. What changed")
        after = snapshot(project)
        diff = unified_diff(before, after)
        print(diff)
        check([name for name in sorted(before | after) if before.get(name) != after.get(name)] == ["textstats.py"],
              "files other than textstats.py changed")  # fmt: skip
        check(f"+    return sorted(found.items(), {FIX})" in diff, "the diff does not show the repair")
        tests = subprocess.run(
            [sys.executable, "-B", "-m", "unittest"], cwd=project, capture_output=True, text=True, timeout=60
        )
        check(tests.returncode == 0, f"the tests of the repaired project fail:\n{tests.stderr}")
        print("The project's own tests pass now.")
        show_checkpoint(first.run)

        headline(
            "3. The same session, resumed",
            "A second run continues the first one's session, on the folder as its checkpoint holds it; nothing is",
            "uploaded.",
        )
        second = self.vm0_run("resumed run", "--resume", first.run["runId"], "--timeout", "120", LOOK_AGAIN)
        check("DEMO: the repaired file is here" in second.tool_output, "the resumed run does not see the repaired file")
        check(second.run.get("resumedFrom") == first.run["runId"], "the second run does not say what it resumed")
        session = first.run["checkpoint"]["cliAgentSessionId"]
        check(second.session == session, f"the session is {second.session}, not {session} as before")
        print(f"Session {session}, the same in both runs.")

    def vm0_run(self, name: str, *arguments: str) -> RunLog:
        """`vm0 run` as a user calls it; events are shown as they come."""
        command = [sys.executable, "-m", "vm0.cli", "run", "--agent", "mock-claude", *self.backend, "--json"]
        print(f"$ vm0 {' '.join([*command[3:], *(words_of(argument) for argument in arguments)])}", flush=True)
        log = RunLog()
        begun = time.monotonic()
        with subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, text=True, env=self.environment
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.take(line)
                    sys.stdout.flush()
                code = process.wait(TIME_LIMIT_S)
            except (json.JSONDecodeError, KeyError) as exc:
                raise DemoError(f"vm0 run printed something else than announced: {exc!r}") from exc
            except subprocess.TimeoutExpired as exc:
                raise DemoError(f"vm0 run did not end within {TIME_LIMIT_S} s") from exc
            finally:
                process.kill()
        check(code == 0, f"vm0 run exited with {code}")
        self.seconds[name] = time.monotonic() - begun
        self.phases[name] = {step["phase"]: step.get("durationMs", 0.0) / 1000 for step in log.run["timeline"]}
        check_run(log.run, self.isolations)
        print(f"  isolation: {log.run['isolation']}")
        return log

    def times(self) -> None:
        """What took how long, in seconds."""
        print("\n=== Times\n")
        if "setup" in self.seconds:
            print(f"{'setup (packages, image, snapshot)':<34} {self.seconds['setup']:8.2f} s")
        for name, phases in self.phases.items():
            print(f"{name:<34} {self.seconds[name]:8.2f} s")
            for phase, seconds in phases.items():
                print(f"  {phase:<32} {seconds:8.3f} s")


class RunLog:
    """What one `vm0 run --json` printed: NDJSON events and phases, and the run as the last line."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.session = ""
        self.tool_output = ""

    def take(self, line: str) -> None:
        record = json.loads(line)
        if record["type"] == "run":
            self.run = record
        elif record["type"] == "event":
            self._event(record["event"])

    def _event(self, event: dict[str, Any]) -> None:
        if event.get("type") == "system" and event.get("subtype") == "init":
            self.session = event["session_id"]
            print(f"  agent: session {self.session}")
        for block in event.get("message", {}).get("content", []):
            if block["type"] == "text":
                print(f"  agent: {block['text'].splitlines()[0]}")
            elif block["type"] == "tool_use":
                print(f"  agent: calls {block['name']}")
            elif block["type"] == "tool_result":
                self.tool_output += block["content"]
                for text in block["content"].splitlines():
                    print(f"    | {text}")


def words_of(argument: str) -> str:
    return "'<a shell script>'" if "\n" in argument else argument


def check_run(run: dict[str, Any], isolations: set[str]) -> None:
    check(run.get("status") == "completed", f"the run is {run.get('status')}, not completed")
    check(run.get("outcome", {}).get("exitCode") == 0, f"the outcome is {run.get('outcome')}")
    check(run.get("isolation") in isolations, f"the isolation is recorded as {run.get('isolation')}")
    check(bool(run.get("timeline")), "the run has no timeline")
    check(run.get("firstAbnormalStep") is None, f"step {run.get('firstAbnormalStep')} was abnormal")
    check(bool(run.get("checkpoint", {}).get("cliAgentSessionId")), "the run has no checkpoint with a session")


def show_checkpoint(run: dict[str, Any]) -> None:
    found = run["checkpoint"]
    check(bool(found.get("artifactVersion")), "the checkpoint has no artifact version")
    print(f"Checkpoint {found['checkpointId']} of run {run['runId']}:")
    print(f"  artifact {found['artifactName']}, version {found['artifactVersion']}")
    print("  It is in the server's object store; `vm0 run --resume RUN` goes on from it.")


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def unified_diff(before: dict[str, str], after: dict[str, str]) -> str:
    return "".join(
        line
        for name in sorted(before | after)
        for line in difflib.unified_diff(
            before.get(name, "").splitlines(keepends=True),
            after.get(name, "").splitlines(keepends=True),
            f"before/{name}",
            f"after/{name}",
        )
    )


def headline(title: str, *explanation: str) -> None:
    print(f"\n=== {title}")
    for line in explanation:
        print(line)
    print(flush=True)


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise DemoError(problem)


if __name__ == "__main__":
    sys.exit(main())
