from __future__ import annotations

import json
import pathlib

import pytest

from vm0.guest_agent import inbox
from vm0.guest_agent.events import EventQueue
from vm0.guest_agent.lines import MAX_LINE_BYTES
from vm0.guest_agent.transcript import MAX_EVENT_BYTES, MAX_EVENT_DEPTH, Transcript, parse_event
from vm0.guest_common.log import Log
from vm0.guest_common.masking import Masker
from vm0.guest_common.operations import Operations


class Recorded:
    def __init__(self, folder: pathlib.Path, kind: str = "claude-code", secrets: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.queue = EventQueue(str(folder))
        self.messages = inbox.Inbox()
        self.transcript = Transcript(
            kind,
            Masker(secrets, ["type", "system", "result"]),
            self.queue,
            self.messages,
            Log("t", str(folder / "system.log"), stderr_fd=None),
            Operations(str(folder / "ops")),
            str(folder / "agent.log"),
            api_start_time_ms=1,
        )

    def say(self, data: bytes, stream: str = "stdout") -> Recorded:
        self.transcript.feed(stream, data)
        self.transcript.finish(stream)
        return self

    def events(self) -> list[dict]:
        return [json.loads(data) for data in self.queue.take(0)]

    def log(self) -> str:
        path = self.folder / "system.log"
        return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"text",
        b"[1]",
        b'"type"',
        b"{",
        b"{}",
        b'{"a": 1}',
        b'{"type": 7}',
        b'{"type": null}',
        b'{"type": "x", "n": NaN}',
        b'{"type": "x", "n": -Infinity}',
        b'{"type": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"type": "x", "d": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"type": "x", "d": ' + b"[" * MAX_EVENT_DEPTH + b"]" * MAX_EVENT_DEPTH + b"}",
        b'{"type": "x"} trailing',
    ],
)
def test_lines_that_are_no_events(line: bytes) -> None:
    assert parse_event(line) is None


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b' {"type": "x"} \r', {"type": "x"}),
        (b'{"type": "x", "sequenceNumber": 99}', {"type": "x"}),
        (b'{"type": "\xff"}', {"type": "�"}),
        (b'{"type": "a", "type": "b"}', {"type": "b"}),
        (b'{"type": "x", "s": "\\ud800"}', {"type": "x", "s": "\ud800"}),
    ],
)
def test_odd_lines_that_are_events(line: bytes, event: dict) -> None:
    assert parse_event(line) == event


def test_everything_is_kept_in_the_log_and_events_are_numbered(tmp_path: pathlib.Path) -> None:
    data = b'noise\n{"type":"system","subtype":"init","session_id":"s-1"}\n\n{"type":"assistant"}\nlast {'
    recorded = Recorded(tmp_path).say(data)
    assert [(e["type"], e["sequenceNumber"]) for e in recorded.events()] == [("system", 0), ("assistant", 1)]
    assert (tmp_path / "agent.log").read_bytes() == data
    assert recorded.transcript.session_id == "s-1"
    assert json.loads((tmp_path / "ops").read_text())["action_type"] == "api_to_cli_init"


def test_the_first_session_id_stands(tmp_path: pathlib.Path) -> None:
    lines = b"".join(b'{"type":"system","subtype":"init","session_id":"s-%d"}\n' % n for n in range(3))
    assert Recorded(tmp_path).say(lines).transcript.session_id == "s-0"


@pytest.mark.parametrize(
    ("line", "text", "is_error"),
    [
        (b'{"type":"result","subtype":"success","is_error":false,"result":"all good"}', "all good", False),
        (b'{"type":"result","subtype":"success","result":7}', None, False),
        (b'{"type":"result","subtype":"error_max_turns"}', None, True),
        (b'{"type":"result","subtype":"success","is_error":true,"result":"no"}', "no", True),
    ],
)
def test_results(tmp_path: pathlib.Path, line: bytes, text: str | None, is_error: bool) -> None:
    recorded = Recorded(tmp_path).say(line)
    assert (recorded.transcript.result_text, recorded.transcript.result_is_error) == (text, is_error)
    assert recorded.messages.get(1) == (inbox.RESULT, None)


def test_a_line_too_long_leaves_a_marker(tmp_path: pathlib.Path) -> None:
    long = b'{"type":"x","d":"' + b"y" * MAX_LINE_BYTES + b'"}'
    recorded = Recorded(tmp_path).say(long + b'\n{"type":"after"}\n')
    assert recorded.events() == [
        {"type": "system", "subtype": "line_too_long", "cut_bytes": len(long), "sequenceNumber": 0},
        {"type": "after", "sequenceNumber": 1},
    ]
    assert "beyond the limit" in recorded.log()


def test_a_number_that_json_cannot_say_again(tmp_path: pathlib.Path) -> None:
    recorded = Recorded(tmp_path).say(b'{"type":"x","n":1e999}\n{"type":"y"}\n')
    assert [e["type"] for e in recorded.events()] == ["y"]
    assert "left out" in recorded.log()


def test_the_lines_of_a_command_are_events(tmp_path: pathlib.Path) -> None:
    recorded = Recorded(tmp_path, "command").say(b'one\r\n\n{"type":"result"}\n\xff').say(b"oops", "stderr")
    recorded.transcript.finish_command(0)
    recorded.transcript.finish_command(3)
    assert [{k: v for k, v in e.items() if k != "sequenceNumber"} for e in recorded.events()] == [
        {"type": "output", "stream": "stdout", "text": "one"},
        {"type": "output", "stream": "stdout", "text": ""},
        {"type": "output", "stream": "stdout", "text": '{"type":"result"}'},
        {"type": "output", "stream": "stdout", "text": "�"},
        {"type": "output", "stream": "stderr", "text": "oops"},
        {"type": "result", "subtype": "success", "is_error": False, "exit_code": 0},
        {"type": "result", "subtype": "error", "is_error": True, "exit_code": 3},
    ]
    assert recorded.transcript.session_id == "" and recorded.transcript.stderr_tail() == "oops"


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"\xf0\x9f\x98\x80", b'"'])
def test_no_event_is_larger_than_the_api_takes(tmp_path: pathlib.Path, byte: bytes) -> None:
    line = byte * (MAX_LINE_BYTES // len(byte))
    recorded = Recorded(tmp_path, "command").say(line + b"\nafter\n")
    data = []
    while batch := recorded.queue.take(0):
        data += batch
        recorded.queue.settle()
    assert len(data) == 2 and max(map(len, data)) < MAX_EVENT_BYTES + 100
    first = json.loads(data[0])
    assert len(first["text"]) >= MAX_EVENT_BYTES // 8
    assert set(first["text"]) == {byte.decode("utf-8", "replace")}


def test_a_claude_event_too_large_as_json_leaves_a_marker(tmp_path: pathlib.Path) -> None:
    recorded = Recorded(tmp_path).say(b'{"type":"x","t":"' + b"\xff" * (MAX_LINE_BYTES - 100) + b'"}\n{"type":"y"}\n')
    assert [(e["type"], e.get("subtype")) for e in recorded.events()] == [("system", "line_too_long"), ("y", None)]


@pytest.mark.parametrize("position", range(MAX_LINE_BYTES - 12, MAX_LINE_BYTES + 1))
def test_a_secret_at_the_cut_of_a_line_does_not_escape_in_part(tmp_path: pathlib.Path, position: int) -> None:
    secret = "hunter2-hunt"
    recorded = Recorded(tmp_path, "command", (secret,)).say(b"." * position + secret.encode() + b"." * 50)
    (event,) = recorded.events()
    assert not set(event["text"]) - set(".*")
    assert event["cut_bytes"] == position + len(secret) + 50 - MAX_LINE_BYTES


def test_standard_error_is_bounded_and_masked(tmp_path: pathlib.Path) -> None:
    recorded = Recorded(tmp_path, secrets=("hunter2",))
    for number in range(3000):
        recorded.transcript.feed("stderr", b"%d hunter2 " % number + b"x" * 200 + b"\n")
    recorded.transcript.finish("stderr")
    tail = recorded.transcript.stderr_tail()
    assert tail.splitlines()[-1].startswith("2999 ***") and len(tail.splitlines()) == 50
    log = recorded.log()
    assert "hunter2" not in log and len(log) < 500_000 and "no more of its standard error is logged" in log
    assert recorded.events() == []


def test_a_full_queue_lets_a_flood_pass(tmp_path: pathlib.Path) -> None:
    recorded = Recorded(tmp_path, "command")
    recorded.queue._memory_events, recorded.queue._spill_bytes = 10, 0
    for _ in range(10):
        recorded.transcript.feed("stdout", b"line\n" * 1000 + b"li")
    recorded.say(b"ne\n" * 3).say(b"err\n" * 500 + b"last", "stderr")
    assert recorded.queue.event_count == 10_000 + 3 + 501
    assert recorded.queue.dropped == recorded.queue.event_count - 10
    assert recorded.transcript.stderr_tail().endswith("err\nlast")


@pytest.mark.parametrize("size", [1, 3, 7, 50, 1000])
def test_noise_around_events_in_any_chunks(tmp_path: pathlib.Path, size: int) -> None:
    data = b'no\nise\n{"type":"a"}\nmore\n\nnoise {"type":"x"}\n  {"type":"b",\n{"type":"c"}\nnoise\nnoise'
    recorded = Recorded(tmp_path)
    for start in range(0, len(data), size):
        recorded.transcript.feed("stdout", data[start : start + size])
    recorded.transcript.finish("stdout")
    assert [e["type"] for e in recorded.events()] == ["a", "c"]
