from __future__ import annotations

import pytest

from vm0.guest_agent import cli
from vm0.guest_agent.cli import MAX_ARGUMENT_BYTES, plan_command, plan_environment
from vm0.guest_agent.payload import Payload

BASE = ("--print", "--verbose", "--output-format", "stream-json", "--dangerously-skip-permissions")


@pytest.mark.parametrize(
    ("payload", "resume", "options"),
    [
        (Payload("p"), "", ()),
        (Payload("p"), "s-1", ("--resume", "s-1")),
        (Payload("p", append_system_prompt="be kind"), "", ("--append-system-prompt", "be kind")),
        (Payload("p", disallowed_tools=("Bash", "Edit")), "", ("--disallowed-tools", "Bash", "Edit")),
        (Payload("p", disallowed_tools=()), "", ()),
        (Payload("p", tools=("Read",)), "", ("--tools", "Read")),
        (Payload("p", tools=()), "", ("--tools", "")),
        (Payload("p", settings='{"a":1}'), "", ("--settings", '{"a":1}')),
        (
            Payload("p", append_system_prompt="a", disallowed_tools=("B",), tools=("C",), settings="{}"),
            "s",
            (
                "--resume",
                "s",
                "--append-system-prompt",
                "a",
                "--disallowed-tools",
                "B",
                "--tools",
                "C",
                "--settings",
                "{}",
            ),
        ),
    ],
)
def test_claude_options(payload: Payload, resume: str, options: tuple[str, ...]) -> None:
    command = plan_command("claude-code", payload, {}, resume_session_id=resume)
    assert command.argv == ("claude", *BASE, *options, "--", "p")
    assert command.stdin is None and command.script is None


def test_a_prompt_that_looks_like_an_option_stands_behind_the_dashes() -> None:
    assert plan_command("claude-code", Payload("--resume x"), {}).argv[-2:] == ("--", "--resume x")


@pytest.mark.parametrize("prompt", ["x" * (MAX_ARGUMENT_BYTES + 1), "é" * (MAX_ARGUMENT_BYTES // 2 + 1)])
def test_a_long_prompt_goes_another_way(prompt: str) -> None:
    claude = plan_command("claude-code", Payload(prompt, tools=("Read",)), {})
    assert claude.stdin == prompt and claude.argv[-2:] == ("--tools", "Read")
    command = plan_command("command", Payload(prompt), {}, shell="/bin/bash", script_path="/run/s.sh")
    assert command.script == prompt and command.argv == ("/bin/bash", "/run/s.sh")


def test_the_longest_argument() -> None:
    prompt = "x" * MAX_ARGUMENT_BYTES
    assert plan_command("claude-code", Payload(prompt), {}).argv[-1] == prompt


def test_mock_claude_has_the_same_options() -> None:
    command = plan_command("mock-claude", Payload("p"), {}, mock_command=("python3", "-I", "mock"))
    assert command.argv == ("python3", "-I", "mock", *BASE, "--", "p")


def test_a_command_is_run_by_a_shell() -> None:
    assert plan_command("command", Payload("echo 'x'; exit 3"), {}).argv == ("/bin/sh", "-c", "echo 'x'; exit 3")


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="'codex': expected one of claude-code, mock-claude, command"):
        plan_command("codex", Payload("p"), {})


INHERITED = {
    "PATH": "/bin",
    "VM0_RUN_ID": "r",
    "VM0_WORKING_DIR": "/w",
    "VM0_RUN_ID_X": "x",
    "VM0_API_URL": "unix:/x",
    "VM0_PAYLOAD_FILE": "/p",
    "CLI_AGENT_TYPE": "command",
    "CLI_OTHER": "y",
}


def test_the_cli_sees_its_own_environment_only() -> None:
    found = plan_environment(INHERITED, Payload("p", environment={"PATH": "/mine", "K": "v"}), "command", is_root=True)
    assert found == {"PATH": "/mine", "VM0_RUN_ID": "r", "VM0_WORKING_DIR": "/w", "CLI_OTHER": "y", "K": "v"}


@pytest.mark.parametrize("kind", cli.CLAUDE_KINDS)
@pytest.mark.parametrize("is_root", [True, False])
def test_claude_gets_more(kind: str, is_root: bool) -> None:
    found = plan_environment({}, Payload("p", environment={"DISABLE_TELEMETRY": "0"}), kind, is_root=is_root)
    assert found.pop("IS_SANDBOX", None) == ("1" if is_root else None)
    assert found == {**cli.CLAUDE_ENVIRONMENT, "DISABLE_TELEMETRY": "0"}
    assert len(cli.CLAUDE_ENVIRONMENT) == 7
