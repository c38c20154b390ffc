"""A folder that looks like a sandbox, and guest-agent as a real process in it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import uuid
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
PATH = "/usr/local/bin:/usr/bin:/bin"

# guest-agent with other timings than the real ones: the JSON object in argv[1]
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[2])
from vm0.guest_agent.main import run
from vm0.guest_agent.timings import Timings
from vm0.guest_common import environment
code = run(environment.read(), Timings(**json.loads(sys.argv[1])))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
sys.stderr.write(f"peak memory {peak.split()[1]} KiB\\n")
sys.exit(code)
"""
FAST = {"retry_delay_s": 0.01, "telemetry_interval_s": 0.2, "metrics_interval_s": 0.1, "batch_delay_s": 0.01}


class GuestSandbox:
    """`home`, `workspace` (the working directory) and `runtime` below a temporary folder, and a `bin` on PATH."""

    def __init__(self, root: pathlib.Path, api_url: str = "") -> None:
        self.root = root
        self.home, self.workspace, self.runtime = root / "home", root / "workspace", root / "runtime"
        self.bin = root / "bin"
        for folder in (self.home, self.workspace, self.bin):
            folder.mkdir(exist_ok=True)
        self.run_id = str(uuid.uuid4())
        self.api_url = api_url
        self.timings: dict[str, float] = dict(FAST)
        self.variables: dict[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def claude(self, source: str) -> None:
        """Install a Python program as `claude`."""
        path = self.bin / "claude"
        path.write_text(f"#!{sys.executable} -IS\n{source}")
        path.chmod(0o755)

    def start(self, prompt: str, kind: str = "claude-code", **payload: Any) -> subprocess.Popen[bytes]:
        payload_file = self.root / "payload.json"
        payload_file.write_text(json.dumps({"prompt": prompt, **payload}))
        environment = {
            "PATH": f"{self.bin}:{PATH}",
            "HOME": str(self.home),
            "VM0_RUN_ID": self.run_id,
            "VM0_API_URL": self.api_url,
            "VM0_WORKING_DIR": str(self.workspace),
            "VM0_RUNTIME_DIR": str(self.runtime),
            "VM0_PAYLOAD_FILE": str(payload_file),
            "CLI_AGENT_TYPE": kind,
            **self.variables,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", DRIVER, json.dumps(self.timings), str(REPOSITORY / "src")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, prompt: str, kind: str = "claude-code", timeout_s: float = 40, **payload: Any) -> Finished:
        return self.finish(self.start(prompt, kind, **payload), timeout_s)

    def finish(self, process: subprocess.Popen[bytes], timeout_s: float = 40) -> Finished:
        stdout, stderr = process.communicate(timeout=timeout_s)
        path = self.runtime / "outcome.json"
        outcome = json.loads(path.read_text()) if path.exists() else {}
        return Finished(process.returncode, stdout.decode(), stderr.decode(), outcome)

    def mount(self, role: str, folder: pathlib.Path, name: str = "work", driver: str = "vas") -> None:
        self.variables |= {
            f"VM0_{role}_DRIVER": driver,
            f"VM0_{role}_MOUNT_PATH": str(folder),
            "VM0_ARTIFACT_VOLUME_NAME" if role == "ARTIFACT" else "VM0_MEMORY_NAME": name,
        }

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


class Finished:
    """How guest-agent ended."""

    def __init__(self, code: int, stdout: str, stderr: str, outcome: dict[str, Any]) -> None:
        self.code, self.stdout, self.stderr, self.outcome = code, stdout, stderr, outcome

    @property
    def peak_memory_bytes(self) -> int:
        return int(self.stderr.rpartition("peak memory ")[2].split()[0]) * 1024

    def __repr__(self) -> str:
        return f"exit code {self.code}, {self.outcome}\n{self.stderr}"


def lines(*events: object) -> str:
    """A Python program that prints these events as lines."""
    return "".join(f"print({json.dumps(event)!r}, flush=True)\n" for event in events)


def init(session_id: str = "11111111-2222-3333-4444-555555555555") -> dict[str, object]:
    return {"type": "system", "subtype": "init", "session_id": session_id}


def result(text: str = "done", *, is_error: bool = False) -> dict[str, object]:
    return {"type": "result", "subtype": "error" if is_error else "success", "is_error": is_error, "result": text}
