"""The command line of each agent kind, as data: what to execute, with which environment, and what it will print."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vm0.guest_agent.payload import Payload

CLAUDE_CODE, MOCK_CLAUDE, COMMAND = "claude-code", "mock-claude", "command"
CLAUDE_KINDS = (CLAUDE_CODE, MOCK_CLAUDE)
KINDS = (*CLAUDE_KINDS, COMMAND)

MAX_ARGUMENT_BYTES = 100 * 1024  # Linux takes 128 KiB for one argument, its end included

# Each costs Claude Code a network call or a prompt at start that nobody in a sandbox answers.
CLAUDE_ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_TERMINAL_TITLE": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_INSTALLATION_CHECKS": "1",
    "DISABLE_TELEMETRY": "1",
}
# Ours, and of no use to the agent. The run id and the working directory stay.
_PRIVATE_VARIABLE = re.compile(r"VM0_(?!RUN_ID$|WORKING_DIR$).*|CLI_AGENT_TYPE")


class CommandLine:
    """What to start. `stdin`: text for its standard input; `script`: text that `script_path` must hold."""

    __slots__ = ("argv", "environment", "kind", "script", "stdin")

    def __init__(
        self,
        kind: str,
        argv: tuple[str, ...],
        environment: dict[str, str],
        *,
        stdin: str | None = None,
        script: str | None = None,
    ) -> None:
        self.kind, self.argv, self.environment = kind, argv, environment
        self.stdin, self.script = stdin, script


def plan_environment(inherited: Mapping[str, str], payload: Payload, kind: str, *, is_root: bool) -> dict[str, str]:
    """What the CLI sees: ours without the private part, what its kind needs, and the user's, which wins."""
    environment = {name: value for name, value in inherited.items() if not _PRIVATE_VARIABLE.fullmatch(name)}
    if kind in CLAUDE_KINDS:
        environment |= CLAUDE_ENVIRONMENT
        if is_root:
            environment["IS_SANDBOX"] = "1"  # Claude Code refuses to skip permissions as root without it
    return environment | payload.environment


def plan_command(
    kind: str,
    payload: Payload,
    environment: dict[str, str],
    *,
    resume_session_id: str = "",
    mock_command: tuple[str, ...] = (),
    shell: str = "/bin/sh",
    script_path: str = "",
) -> CommandLine:
    """Raises ValueError for a kind that is not known."""
    if kind == COMMAND:
        if _fits(payload.prompt):
            return CommandLine(kind, (shell, "-c", payload.prompt), environment)
        return CommandLine(kind, (shell, script_path), environment, script=payload.prompt)
    if kind not in CLAUDE_KINDS:
        raise ValueError(f"unknown agent type {kind!r}: expected one of {', '.join(KINDS)}")
    program = mock_command if kind == MOCK_CLAUDE else ("claude",)
    options = _claude_options(payload, resume_session_id)
    if _fits(payload.prompt):
        # `--` because the tool options take every word that follows them
        return CommandLine(kind, (*program, *options, "--", payload.prompt), environment)
    return CommandLine(kind, (*program, *options), environment, stdin=payload.prompt)


def _claude_options(payload: Payload, resume_session_id: str) -> tuple[str, ...]:
    options = ["--print", "--verbose", "--output-format", "stream-json", "--dangerously-skip-permissions"]
    if resume_session_id:
        options += ["--resume", resume_session_id]
    if payload.append_system_prompt:
        options += ["--append-system-prompt", payload.append_system_prompt]
    if payload.disallowed_tools:
        options += ["--disallowed-tools", *payload.disallowed_tools]
    if payload.tools is not None:
        options += ["--tools", *(payload.tools or ("",))]  # an empty one means: no tools at all
    if payload.settings:
        options += ["--settings", payload.settings]
    return tuple(options)


def _fits(prompt: str) -> bool:
    return len(prompt.encode()) <= MAX_ARGUMENT_BYTES
