"""`guest-mock-claude`: arguments, prompt, session, and then a scenario or a shell command."""

from __future__ import annotations

import os
import sys

from vm0.guest_common import environment
from vm0.guest_mock_claude import arguments, scenarios
from vm0.guest_mock_claude.session import Session, UnknownSessionError, is_safe_id, resume_session, start_session
from vm0.guest_mock_claude.shell import replace_with_bash, run_bash
from vm0.guest_mock_claude.stage import Stage

MAX_PROMPT_BYTES = 16 * 1024 * 1024
NO_PROMPT = "Error: Input must be provided either through stdin or as a prompt argument when using --print"


def main(argv: list[str]) -> int:
    """The CLI's exit code. Everything it says goes to file descriptors 1 and 2, unbuffered."""
    try:
        return _run(argv)
    except BrokenPipeError:
        return 1  # nobody listens any more
    except (arguments.UsageError, UnknownSessionError) as exc:
        sys.stderr.write(f"{exc}\n")
    except scenarios.ScenarioError as exc:
        sys.stderr.write(f"mock-claude: {exc} (the prompts it knows are listed in scenarios.py)\n")
    except OSError as exc:
        sys.stderr.write(f"mock-claude: {exc}\n")
    return 1


def _run(argv: list[str]) -> int:
    options = arguments.parse(argv)
    prompt = _prompt_from_stdin() if options.prompt is None else options.prompt
    if not prompt.strip():
        sys.stderr.write(f"{NO_PROMPT}\n")
        return 1
    surroundings = environment.read()
    cwd = os.getcwd()
    scenario = scenarios.find(prompt)
    if options.resume is not None:
        session = resume_session(surroundings.home, cwd, options.resume)
    elif options.output_format == "text":
        session = Session("", None)
    else:
        echoed = scenarios.echoed_session_id(prompt)
        session = start_session(surroundings.home, cwd, echoed if echoed and is_safe_id(echoed) else None)
    stage = Stage(session, cwd, surroundings.inherited, result_only=options.output_format == "json")
    if scenario is None:
        return replace_with_bash(prompt) if options.output_format == "text" else run_prompt(prompt, stage)
    play, argument = scenario
    if options.output_format == "stream-json" or play in scenarios.ALSO_IN_TEXT_MODE:
        return play(stage, argument)
    return 0


def run_prompt(prompt: str, stage: Stage) -> int:
    """The usual five events around one command."""
    stage.init()
    stage.text("Executing the command")
    stage.tool_use("Bash", {"command": prompt})
    code, output = run_bash(prompt)
    stage.tool_result(output, code != 0)
    stage.result(output, code != 0)
    return code


def _prompt_from_stdin() -> str:
    """:raises arguments.UsageError: more than the limit. A terminal gives no prompt: nobody would know to type one."""
    if os.isatty(0):
        return ""
    data = bytearray()
    while chunk := os.read(0, 64 * 1024):
        data += chunk
        if len(data) > MAX_PROMPT_BYTES:
            raise arguments.UsageError(f"error: the prompt is more than {MAX_PROMPT_BYTES} bytes")
    return data.decode("utf-8", "surrogateescape")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
