"""Prompts that make the mock behave, or misbehave, in a particular way. All other prompts are shell commands.

| prompt | what happens |
| --- | --- |
| `@fail:<msg>` | message and newline to stderr, no stdout, exit 1 |
| `@fail-no-newline:<msg>` | the same without the newline |
| `@fail-invalid-utf8`, `@fail-invalid-utf8-long` | stderr that is not UTF-8 (the long one 256 KiB), exit 1 |
| `@stuck-tool` | a tool use that never gets its result |
| `@stuck-tool-deaf` | the same, and SIGTERM is ignored |
| `@stuck-tool-closed-stdout-deaf` | the same, and stdout is closed |
| `@orphan-pipe` | a result, exit 0, and a child stays that holds stdout |
| `@hang-after-result` | a result, and then it does not exit |
| `@hang-after-result-deaf` | the same, and SIGTERM is ignored |
| `@hang-after-result-then-event` | the same, with one more event after a second |
| `@hang-after-result-periodic-events` | the same, with one more event every second |
| `@hang-after-error-result` | an error result, and then it does not exit |
| `@exit-after-result` | a result, exit 0 |
| `@no-result` | exit 0 without a result |
| `@write-env-json:<path>` | the environment as JSON into a file, then a result |
| `@ECHO@` | the prompt's other lines, each a JSON document, one after the other; exit 0 |
| `@ECHO-HANG@` | the same, and then it does not exit |
| `@stdout-invalid-utf8` | a line that is not UTF-8, then a result |
| `@stdout-over-limit-<bytes>` | one line of that many bytes, then a result |
| `@close-stdout` | closes stdout and goes on without a word |
| `@flood:<bytes>` | events of that many bytes in all, as fast as they are taken, then a result |

With an output format other than `stream-json`, those that hang or flood return at once.
"""

from __future__ import annotations

import json

from vm0.guest_mock_claude.stage import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Scenario = Callable[[Stage, str], int]

HANG_S = 3600
EVENT_INTERVAL_S = 1.0
LONG_STDERR_BYTES = 256 * 1024
FLOOD_LINE_CHARS = 8 * 1024
FLOOD_WRITE_BYTES = 1024 * 1024
INVALID_UTF8 = b"before \xff\xfe\xed\xa0\x80 after"
DONE = "done"


class ScenarioError(Exception):
    """the prompt names a scenario but not in its form"""


def _hang() -> int:
    import time

    time.sleep(HANG_S)
    return 1


def _ignore_sigterm() -> None:
    """Before the first event, so that whoever saw one knows that SIGTERM is ignored."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _bytes(argument: str) -> int:
    if not argument.isascii() or not argument.isdigit() or len(argument) > 15:
        raise ScenarioError(f"{argument!r} is not a number of bytes")
    return int(argument)


def fail(stage: Stage, message: str) -> int:
    stage.stderr(message.encode("utf-8", "surrogateescape") + b"\n")
    return 1


def fail_no_newline(stage: Stage, message: str) -> int:
    stage.stderr(message.encode("utf-8", "surrogateescape"))
    return 1


def fail_invalid_utf8(stage: Stage, _: str) -> int:
    stage.stderr(INVALID_UTF8 + b"\n")
    return 1


def fail_invalid_utf8_long(stage: Stage, _: str) -> int:
    stage.stderr((INVALID_UTF8 * (LONG_STDERR_BYTES // len(INVALID_UTF8) + 1))[:LONG_STDERR_BYTES])
    return 1


def stuck_tool(stage: Stage, _: str) -> int:
    stage.init()
    stage.tool_use("WebFetch", {"url": "https://example.com/", "prompt": "never answered"})
    return _hang()


def stuck_tool_deaf(stage: Stage, argument: str) -> int:
    _ignore_sigterm()
    return stuck_tool(stage, argument)


def stuck_tool_closed_stdout_deaf(stage: Stage, _: str) -> int:
    _ignore_sigterm()
    stage.init()
    stage.tool_use("WebFetch", {"url": "https://example.com/", "prompt": "never answered"})
    stage.close_stdout()
    return _hang()


def orphan_pipe(stage: Stage, _: str) -> int:
    import subprocess

    stage.init()
    child = subprocess.Popen(["sleep", str(HANG_S)], stdin=subprocess.DEVNULL)
    child.returncode = 0  # left on purpose: no warning that it still runs
    stage.result(DONE)
    return 0


def hang_after_result(stage: Stage, _: str) -> int:
    stage.init()
    stage.result(DONE)
    return _hang()


def hang_after_result_deaf(stage: Stage, argument: str) -> int:
    _ignore_sigterm()
    return hang_after_result(stage, argument)


def hang_after_result_then_event(stage: Stage, _: str) -> int:
    import time

    stage.init()
    stage.result(DONE)
    time.sleep(EVENT_INTERVAL_S)
    stage.text("one more thing")
    return _hang()


def hang_after_result_periodic_events(stage: Stage, _: str) -> int:
    import time

    stage.init()
    stage.result(DONE)
    for number in range(int(HANG_S / EVENT_INTERVAL_S)):
        time.sleep(EVENT_INTERVAL_S)
        stage.text(f"still here: {number}")
    return 1


def hang_after_error_result(stage: Stage, _: str) -> int:
    stage.init()
    stage.result("it went wrong", is_error=True)
    return _hang()


def exit_after_result(stage: Stage, _: str) -> int:
    stage.init()
    stage.result(DONE)
    return 0


def no_result(stage: Stage, _: str) -> int:
    stage.init()
    return 0


def write_env_json(stage: Stage, path: str) -> int:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dict(stage.variables), file, indent=2, sort_keys=True)
    stage.init()
    stage.result(DONE)
    return 0


def echo(stage: Stage, lines: str) -> int:
    for line in echo_lines(lines):
        stage.replay(line.encode("utf-8", "surrogateescape") + b"\n")
    return 0


def echo_hang(stage: Stage, lines: str) -> int:
    echo(stage, lines)
    return _hang()


def stdout_invalid_utf8(stage: Stage, _: str) -> int:
    stage.init()
    stage.raw(b'{"type":"assistant","text":"' + INVALID_UTF8 + b'"}\n')
    stage.result(DONE)
    return 0


def stdout_over_limit(stage: Stage, argument: str) -> int:
    left = _bytes(argument)
    stage.init()
    while left:
        stage.raw(b"x" * min(left, FLOOD_WRITE_BYTES))
        left -= min(left, FLOOD_WRITE_BYTES)
    stage.raw(b"\n")
    stage.result(DONE)
    return 0


def close_stdout(stage: Stage, _: str) -> int:
    stage.init()
    stage.close_stdout()
    return _hang()


def flood(stage: Stage, argument: str) -> int:
    """The flood is no part of the history, which has a limit of its own."""
    left = _bytes(argument)
    stage.init()
    line = stage.flood_line("flood " * (FLOOD_LINE_CHARS // 6))
    block = line * (FLOOD_WRITE_BYTES // len(line))
    while left > 0:
        data = block if left >= len(block) else line * -(-left // len(line))
        stage.raw(data)
        left -= len(data)
    stage.result(DONE)
    return 0


EXACT: dict[str, Scenario] = {
    "@fail-invalid-utf8": fail_invalid_utf8,
    "@fail-invalid-utf8-long": fail_invalid_utf8_long,
    "@stuck-tool": stuck_tool,
    "@stuck-tool-deaf": stuck_tool_deaf,
    "@stuck-tool-closed-stdout-deaf": stuck_tool_closed_stdout_deaf,
    "@orphan-pipe": orphan_pipe,
    "@hang-after-result": hang_after_result,
    "@hang-after-result-deaf": hang_after_result_deaf,
    "@hang-after-result-then-event": hang_after_result_then_event,
    "@hang-after-result-periodic-events": hang_after_result_periodic_events,
    "@hang-after-error-result": hang_after_error_result,
    "@exit-after-result": exit_after_result,
    "@no-result": no_result,
    "@stdout-invalid-utf8": stdout_invalid_utf8,
    "@close-stdout": close_stdout,
}
WITH_ARGUMENT: dict[str, Scenario] = {
    "@fail:": fail,
    "@fail-no-newline:": fail_no_newline,
    "@write-env-json:": write_env_json,
    "@stdout-over-limit-": stdout_over_limit,
    "@flood:": flood,
}
FIRST_LINE: dict[str, Scenario] = {"@ECHO@": echo, "@ECHO-HANG@": echo_hang}
# What has something to say to a person; the rest exists for its events only.
ALSO_IN_TEXT_MODE = frozenset({fail, fail_no_newline, fail_invalid_utf8, fail_invalid_utf8_long})


def find(prompt: str) -> tuple[Scenario, str] | None:
    """The scenario a prompt names and its argument; None for a shell command."""
    first, _, rest = prompt.partition("\n")
    if first.strip() in FIRST_LINE:
        return FIRST_LINE[first.strip()], rest
    if prompt.strip() in EXACT:
        return EXACT[prompt.strip()], ""
    for prefix, scenario in WITH_ARGUMENT.items():
        if prompt.startswith(prefix):
            return scenario, prompt.removeprefix(prefix)
    return None


def echo_lines(text: str) -> list[str]:
    """The non-empty lines. :raises ScenarioError: one is not JSON."""
    lines = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ScenarioError(f"line {number} to echo is not JSON: {exc}") from None
    return lines


def echoed_session_id(prompt: str) -> str | None:
    """The session id that an echo announces; its history must have the same one."""
    found = find(prompt)
    if found is None or found[0] not in (echo, echo_hang):
        return None
    for line in echo_lines(found[1]):
        event = json.loads(line)
        if isinstance(event, dict) and event.get("type") == "system" and event.get("subtype") == "init":
            session_id = event.get("session_id")
            return session_id if isinstance(session_id, str) else None
    return None
