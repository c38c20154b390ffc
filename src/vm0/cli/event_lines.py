"""An agent's event as lines for people. Pure. What agents print is hostile to terminals until `clean` saw it."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TOOL_OUTPUT_LINES = 12  # of one tool's output in a live view; the whole of it is in `vm0 runs logs`
MAX_LINE_LENGTH = 400
ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class LineKind(enum.Enum):
    SESSION = "session"  # the agent started
    SAID = "said"  # the agent's own words
    TOOL = "tool"  # a tool it calls
    OUTPUT = "output"  # what the tool answered
    FAILED = "failed"  # a tool's or the agent's failure
    RESULT = "result"  # the end
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Line:
    kind: LineKind
    text: str


def clean(text: str) -> str:
    """`text` without escape sequences; other control and direction characters are shown as codes."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n")))


def lines_of(event: Mapping[str, Any], *, max_output_lines: int | None = MAX_TOOL_OUTPUT_LINES) -> list[Line]:
    """How an event reads; never raises, whatever the agent put into it."""
    kind = event.get("type")
    if kind == "system":
        model = event.get("model")
        said = f"session {event.get('session_id', 'unknown')}" + (f", {model}" if isinstance(model, str) else "")
        return [Line(LineKind.SESSION, clean(said))] if event.get("subtype") == "init" else []
    if kind in ("assistant", "user"):
        return [line for block in _blocks(event) for line in _block_lines(block, kind == "user", max_output_lines)]
    if kind == "result":
        failed = bool(event.get("is_error")) or event.get("subtype") not in ("success", None)
        turns, cost = event.get("num_turns"), event.get("total_cost_usd")
        text = "agent ended with an error" if failed else "agent ended"
        if isinstance(event.get("exit_code"), int):
            text = f"command exited with {event['exit_code']}"
        if isinstance(turns, int):
            text += f" after {turns} turn{'' if turns == 1 else 's'}"
        if isinstance(cost, (int, float)) and cost:
            text += f", {cost:.4f} USD"
        return [Line(LineKind.FAILED if failed else LineKind.RESULT, text)]
    if kind == "output" and isinstance(event.get("text"), str):
        return [Line(LineKind.FAILED if event.get("stream") == "stderr" else LineKind.OUTPUT, clean(event["text"]))]
    return [Line(LineKind.OTHER, _short(f"{kind}: {_compact(event)}"))]


def result_text(event: Mapping[str, Any]) -> str | None:
    """The agent's final answer, if this event is one."""
    found = event.get("result")
    return found if event.get("type") == "result" and isinstance(found, str) else None


def stdout_text(event: Mapping[str, Any]) -> str | None:
    """A line that a `command` agent printed on its stdout, if this event is one."""
    found = event.get("text")
    return (
        found if (event.get("type"), event.get("stream")) == ("output", "stdout") and isinstance(found, str) else None
    )


def _blocks(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    message = event.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, Sequence) else []


def _block_lines(block: Mapping[str, Any], from_user: bool, limit: int | None) -> Iterator[Line]:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        for text in clean(block["text"]).splitlines():
            yield Line(LineKind.OUTPUT if from_user else LineKind.SAID, text)
    elif kind == "tool_use":
        yield Line(LineKind.TOOL, _tool_call(block))
    elif kind == "tool_result":
        failed = bool(block.get("is_error"))
        yield from _limited(_tool_output(block.get("content")), LineKind.FAILED if failed else LineKind.OUTPUT, limit)


def _tool_call(block: Mapping[str, Any]) -> str:
    name, arguments = str(block.get("name", "tool")), block.get("input")
    if isinstance(arguments, Mapping):
        for key in ("command", "file_path", "path", "pattern", "url", "query"):
            if isinstance(arguments.get(key), str):
                return _short(f"{clean(name)}: {clean(arguments[key])}")
    return _short(f"{clean(name)}: {_compact(arguments)}")


def _tool_output(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(
            item["text"] for item in content if isinstance(item, Mapping) and isinstance(item.get("text"), str)
        )
    return "" if content is None else _compact(content)


def _limited(text: str, kind: LineKind, limit: int | None) -> Iterator[Line]:
    found = clean(text).splitlines()
    shown = found if limit is None or len(found) <= limit + 1 else found[:limit]
    for line in shown:
        yield Line(kind, line if limit is None else _short(line))
    if len(shown) < len(found):
        yield Line(kind, f"... {len(found) - len(shown)} more lines")


def _compact(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":")))


def _short(text: str) -> str:
    one_line = " ⏎ ".join(text.splitlines())
    return one_line if len(one_line) <= MAX_LINE_LENGTH else f"{one_line[: MAX_LINE_LENGTH - 1]}…"
