"""The environment of a guest program: read once, here and nowhere else.

`inherited` is the process environment as it was, for child processes. Numbers that make no sense become None and are
named in `invalid`, so that the program that has a log can say so: a bad override must not stop a run.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_HOME = "/home/user"
DEFAULT_MOCK_CLAUDE_COMMAND = ("/usr/local/bin/guest-mock-claude",)
MOUNT_VARIABLES = {
    "artifact": (
        "VM0_ARTIFACT_DRIVER",
        "VM0_ARTIFACT_MOUNT_PATH",
        "VM0_ARTIFACT_VOLUME_NAME",
        "VM0_ARTIFACT_VERSION_ID",
    ),
    "memory": ("VM0_MEMORY_DRIVER", "VM0_MEMORY_MOUNT_PATH", "VM0_MEMORY_NAME", "VM0_MEMORY_VERSION_ID"),
}


class Mount:
    """A folder whose content outlives the run; `version_id` is what it was filled with, empty for a new one."""

    __slots__ = ("driver", "mount_path", "name", "version_id")

    def __init__(self, driver: str, mount_path: str, name: str, version_id: str) -> None:
        self.driver = driver
        self.mount_path = mount_path
        self.name = name
        self.version_id = version_id


class Environment:
    """A typed snapshot. Absent text is empty; an absent mount is None."""

    __slots__ = (
        "api_start_time_ms",
        "api_url",
        "artifact",
        "cli_agent_type",
        "home",
        "inherited",
        "invalid",
        "memory",
        "mock_claude_command",
        "payload_file",
        "resume_session_id",
        "run_id",
        "runtime_dir",
        "stuck_tool_timeout_s",
        "working_dir",
    )

    def __init__(self, variables: Mapping[str, str]) -> None:
        def text(name: str) -> str:
            return variables.get(name, "").strip()

        self.inherited = dict(variables)
        self.invalid: list[str] = []
        self.run_id = text("VM0_RUN_ID")
        self.api_url = text("VM0_API_URL")
        self.working_dir = variables.get("VM0_WORKING_DIR", "")
        self.cli_agent_type = text("CLI_AGENT_TYPE") or "claude-code"
        self.home = variables.get("HOME") or DEFAULT_HOME
        self.resume_session_id = text("VM0_RESUME_SESSION_ID")
        self.payload_file = variables.get("VM0_PAYLOAD_FILE", "")
        self.runtime_dir = variables.get("VM0_RUNTIME_DIR") or f"/tmp/vm0-run-{self.run_id or 'local'}"
        self.api_start_time_ms = self._number("VM0_API_START_TIME", text("VM0_API_START_TIME"))
        self.stuck_tool_timeout_s = self._number("VM0_STUCK_TOOL_TIMEOUT_SECS", text("VM0_STUCK_TOOL_TIMEOUT_SECS"))
        self.mock_claude_command = self._command(text("VM0_MOCK_CLAUDE_COMMAND"))
        self.artifact = _mount("artifact", variables)
        self.memory = _mount("memory", variables)

    @property
    def local(self) -> bool:
        """No API: no heartbeat, no events, no telemetry, no checkpoint."""
        return not self.api_url

    def runtime_file(self, name: str) -> str:
        return os.path.join(self.runtime_dir, name)

    def _number(self, name: str, text: str) -> int | None:
        if not text:
            return None
        if text.isascii() and text.isdigit() and len(text) <= 18:
            return int(text)
        self.invalid.append(name)
        return None

    def _command(self, text: str) -> tuple[str, ...]:
        if not text:
            return DEFAULT_MOCK_CLAUDE_COMMAND
        try:
            parts = json.loads(text)
        except ValueError:
            parts = None
        if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
            return tuple(parts)
        self.invalid.append("VM0_MOCK_CLAUDE_COMMAND")
        return DEFAULT_MOCK_CLAUDE_COMMAND


def read() -> Environment:
    """The environment of this process."""
    return Environment(os.environ)


def _mount(role: str, variables: Mapping[str, str]) -> Mount | None:
    driver, mount_path, name, version_id = (variables.get(key, "") for key in MOUNT_VARIABLES[role])
    return Mount(driver, mount_path, name, version_id) if driver or name else None
