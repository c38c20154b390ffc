"""The command line of `claude`, as far as we use it. Pure.

Flags that change nothing here are accepted, so that a caller is tested with the command line it really uses; a flag
that the real CLI does not know is an error, as it is there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT_FORMATS = ("text", "json", "stream-json")
SWITCHES = frozenset(
    {
        "-p",
        "--print",
        "--verbose",
        "--dangerously-skip-permissions",
        "--include-partial-messages",
        "--strict-mcp-config",
    }
)
IGNORED_WITH_VALUE = frozenset(
    {
        "--append-system-prompt",
        "--effort",
        "--fallback-model",
        "--input-format",
        "--max-turns",
        "--model",
        "--permission-mode",
        "--settings",
        "--system-prompt",
    }
)
# These swallow every word up to the next flag, so a prompt after them needs `--` before it.
VARIADIC = frozenset(
    {
        "--add-dir",
        "--allowed-tools",
        "--allowedTools",
        "--disallowed-tools",
        "--disallowedTools",
        "--mcp-config",
        "--tools",
    }
)


class UsageError(Exception):
    """the command line is wrong"""


class Arguments:
    """`prompt` is None when there was none: it is read from stdin then."""

    __slots__ = ("output_format", "prompt", "resume")

    def __init__(self, prompt: str | None, output_format: str, resume: str | None) -> None:
        self.prompt, self.output_format, self.resume = prompt, output_format, resume


def parse(argv: Sequence[str]) -> Arguments:
    """:raises UsageError: an unknown flag or output format. A flag without its value is as if it was not there."""
    words = list(argv)
    values: dict[str, str] = {}
    prompt = None
    while words:
        word = words.pop(0)
        flag, equals, inline = word.partition("=")
        if word == "--":
            prompt = words[-1] if words else prompt
            break
        if not word.startswith("-") or word == "-":
            prompt = word
        elif flag in ("--output-format", "--resume", "-r") or flag in IGNORED_WITH_VALUE:
            if equals:
                values[flag] = inline
            elif words and words[0] != "--":
                values[flag] = words.pop(0)
        elif flag in VARIADIC:
            while words and not words[0].startswith("-"):
                words.pop(0)
        elif word not in SWITCHES:
            raise UsageError(f"error: unknown option '{word}'")
    output_format = values.get("--output-format", "text")
    if output_format not in OUTPUT_FORMATS:
        raise UsageError(
            f"error: option '--output-format <format>' argument '{output_format}' is invalid. "
            f"Allowed choices are {', '.join(OUTPUT_FORMATS)}."
        )
    return Arguments(prompt, output_format, values.get("--resume", values.get("-r")))
