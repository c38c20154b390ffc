"""The events of stream-json, as plain dictionaries. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Event = dict[str, Any]

TOOL_USE_ID = "toolu_mock_001"
TOOLS = ("Bash", "Edit", "Glob", "Grep", "Read", "WebFetch", "Write")


def init(session_id: str, cwd: str) -> Event:
    return {
        "type": "system",
        "subtype": "init",
        "cwd": cwd,
        "session_id": session_id,
        "tools": list(TOOLS),
        "model": "mock-claude",
    }


def text(session_id: str, words: str) -> Event:
    return _assistant(session_id, {"type": "text", "text": words})


def tool_use(session_id: str, name: str, arguments: dict[str, str]) -> Event:
    return _assistant(session_id, {"type": "tool_use", "id": TOOL_USE_ID, "name": name, "input": arguments})


def tool_result(session_id: str, output: str, is_error: bool) -> Event:
    content = {"type": "tool_result", "tool_use_id": TOOL_USE_ID, "content": output, "is_error": is_error}
    return {"type": "user", "session_id": session_id, "message": {"role": "user", "content": [content]}}


def result(session_id: str, words: str, is_error: bool) -> Event:
    return {
        "type": "result",
        "subtype": "error" if is_error else "success",
        "session_id": session_id,
        "is_error": is_error,
        "duration_ms": 100,
        "num_turns": 1,
        "result": words,
        "total_cost_usd": 0,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def _assistant(session_id: str, content: Event) -> Event:
    return {"type": "assistant", "session_id": session_id, "message": {"role": "assistant", "content": [content]}}
