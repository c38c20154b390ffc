from __future__ import annotations

import pytest

from vm0.guest_common.environment import DEFAULT_MOCK_CLAUDE_COMMAND, Environment, read


def test_everything_has_a_default() -> None:
    found = Environment({})
    assert (found.run_id, found.api_url, found.working_dir, found.payload_file) == ("", "", "", "")
    assert found.local
    assert found.cli_agent_type == "claude-code"
    assert found.home == "/home/user"
    assert found.runtime_dir == "/tmp/vm0-run-local"
    assert found.artifact is None and found.memory is None
    assert found.invalid == []


def test_a_full_environment() -> None:
    found = Environment(
        {
            "VM0_RUN_ID": "r",
            "VM0_API_URL": "unix:/run/bridge.sock",
            "VM0_API_START_TIME": "1700000000000",
            "VM0_STUCK_TOOL_TIMEOUT_SECS": "7",
            "VM0_MOCK_CLAUDE_COMMAND": '["python3", "-I", "mock"]',
            "VM0_ARTIFACT_DRIVER": "vas",
            "VM0_ARTIFACT_MOUNT_PATH": "/w",
            "VM0_ARTIFACT_VOLUME_NAME": "a",
            "VM0_MEMORY_DRIVER": "vas",
            "VM0_MEMORY_NAME": "m",
        }
    )
    assert not found.local
    assert found.api_start_time_ms == 1_700_000_000_000
    assert found.stuck_tool_timeout_s == 7
    assert found.mock_claude_command == ("python3", "-I", "mock")
    assert found.runtime_dir == "/tmp/vm0-run-r" and found.runtime_file("x") == "/tmp/vm0-run-r/x"
    assert found.artifact is not None and (found.artifact.mount_path, found.artifact.name) == ("/w", "a")
    assert found.memory is not None and found.memory.name == "m"


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "1e3", "²", "9" * 30])
def test_a_malformed_number_is_named_and_ignored(value: str) -> None:
    found = Environment({"VM0_STUCK_TOOL_TIMEOUT_SECS": value})
    assert found.stuck_tool_timeout_s is None
    assert found.invalid == ["VM0_STUCK_TOOL_TIMEOUT_SECS"]


@pytest.mark.parametrize("value", ["{", "[]", '"x"', "[1]", "mock"])
def test_a_malformed_command_is_named_and_ignored(value: str) -> None:
    found = Environment({"VM0_MOCK_CLAUDE_COMMAND": value})
    assert found.mock_claude_command == DEFAULT_MOCK_CLAUDE_COMMAND
    assert found.invalid == ["VM0_MOCK_CLAUDE_COMMAND"]


def test_it_is_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VM0_RUN_ID", "one")
    found = read()
    monkeypatch.setenv("VM0_RUN_ID", "two")
    assert found.run_id == "one" and found.inherited["VM0_RUN_ID"] == "one"
