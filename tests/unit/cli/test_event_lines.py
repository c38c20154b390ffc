"""What people see of an agent's events; agents are hostile to terminals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.cli.event_lines import LineKind, clean, lines_of, result_text, stdout_text

ASSISTANT = {
    "type": "assistant",
    "message": {
        "content": [
            {"type": "text", "text": "I look\nat it"},
            {"type": "tool_use", "name": "Bash", "input": {"command": "ls -l\nrm x"}},
        ]
    },
}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "system", "subtype": "init", "session_id": "s1", "model": "m"}, ["session: session s1, m"]),
        ({"type": "system", "subtype": "other"}, []),
        (ASSISTANT, ["said: I look", "said: at it", "tool: Bash: ls -l ⏎ rm x"]),
        (
            {"type": "user", "message": {"content": [{"type": "tool_result", "content": "a\nb", "is_error": True}]}},
            ["failed: a", "failed: b"],
        ),
        ({"type": "user", "message": {"content": "typed"}}, ["output: typed"]),
        (
            {"type": "result", "subtype": "success", "num_turns": 1, "total_cost_usd": 0.5},
            ["result: agent ended after 1 turn, 0.5000 USD"],
        ),
        ({"type": "result", "subtype": "error", "is_error": True}, ["failed: agent ended with an error"]),
        ({"type": "result", "subtype": "error", "is_error": True, "exit_code": 3}, ["failed: command exited with 3"]),
        ({"type": "output", "stream": "stderr", "text": "oops"}, ["failed: oops"]),
        ({"type": "new_kind", "x": 1}, ['other: new_kind: {"type":"new_kind","x":1}']),
    ],
)
def test_lines(event: dict[str, Any], expected: list[str]) -> None:
    assert [f"{line.kind.value}: {line.text}" for line in lines_of(event)] == expected


def test_long_tool_output_is_cut_in_the_live_view_only() -> None:
    content = "\n".join(str(number) for number in range(100))
    event = {"type": "user", "message": {"content": [{"type": "tool_result", "content": content}]}}
    shown = lines_of(event)
    assert [line.text for line in shown[:2]] == ["0", "1"]
    assert shown[-1].text == "... 88 more lines"
    assert len(lines_of(event, max_output_lines=None)) == 100


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\tand\nlines", "plain\tand\nlines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]52;c;aGk=\x1b\\text", "text"),
        ("back\x08space\x7f", "back\\x08space\\x7f"),
        ("over\rwrite", "over\\x0dwrite"),
        ("dos\r\nline", "dos\nline"),
        ("\x9b31mC1", "\\x9b31mC1"),
        ("bidi \u202eevil", "bidi \\x202eevil"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(text=st.text())
def test_clean_leaves_no_control_characters(text: str) -> None:
    assert not [char for char in clean(text) if ord(char) < 32 and char not in "\n\t"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
KINDS = st.sampled_from(["system", "assistant", "user", "result", "output", "x"])
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "tool_result", "y"])},
    optional=dict.fromkeys(("text", "name", "input", "content", "is_error"), JSON),
)


@given(
    event=st.fixed_dictionaries(
        {"type": KINDS | JSON},
        optional={
            "message": JSON | st.fixed_dictionaries({"content": JSON | st.lists(BLOCKS | JSON, max_size=3)}),
            **dict.fromkeys(("subtype", "session_id", "model", "num_turns", "total_cost_usd", "text", "result"), JSON),
        },
    )
)
def test_no_event_is_too_odd(event: dict[str, Any]) -> None:
    for line in lines_of(event):
        assert "\n" not in line.text and "\x1b" not in line.text
        assert isinstance(line.kind, LineKind)
    assert result_text(event) is None or isinstance(event["result"], str)
    assert stdout_text(event) is None or event["stream"] == "stdout"
