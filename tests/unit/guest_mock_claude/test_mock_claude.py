"""The mock speaks stream-json, keeps its history where the real CLI does, and misbehaves on request."""

from __future__ import annotations

import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.unit.guest_mock_claude.conftest import COMMAND, SOURCE, Start
from vm0.contracts import names
from vm0.guest_mock_claude import scenarios
from vm0.guest_mock_claude.session import encode_folder, is_safe_id, new_session_id
from vm0.guest_mock_claude.shell import DRAIN_S, MAX_OUTPUT_BYTES

STREAM = ("--print", "--verbose", "--output-format", "stream-json", "--dangerously-skip-permissions")
LIMIT_S = 10


def run(start: Start, *arguments: str | bytes, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    process = start(*arguments, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE)
    out, err = process.communicate(stdin, LIMIT_S)
    return process.returncode, out, err


def events(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in found]


def read_events(process: subprocess.Popen[bytes], count: int) -> list[dict[str, Any]]:
    """The next events of a process that does not end; fails rather than waits."""
    assert process.stdout is not None
    found = []
    for _ in range(count):
        assert select.select([process.stdout], [], [], LIMIT_S)[0], "no event came"
        found.append(json.loads(process.stdout.readline()))
    return found


def test_a_command_gives_five_events_and_its_exit_code(start: Start, cwd: pathlib.Path, home: pathlib.Path) -> None:
    code, out, err = run(start, *STREAM, "--", "echo out; echo err >&2; pwd")
    init, text, tool_use, tool_result, result = events(out)
    assert (code, err) == (0, b"")
    session_id = init["session_id"]
    assert (init["type"], init["subtype"], init["cwd"], init["model"]) == ("system", "init", str(cwd), "mock-claude")
    assert "Bash" in init["tools"]
    assert text["message"]["content"][0]["type"] == "text"
    assert tool_use["message"]["content"] == [
        {
            "type": "tool_use",
            "id": "toolu_mock_001",
            "name": "Bash",
            "input": {"command": "echo out; echo err >&2; pwd"},
        }
    ]
    assert tool_result["message"] == {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_mock_001",
                "content": f"out\n{cwd}\n",  # stderr only matters when it fails
                "is_error": False,
            }
        ],
    }
    assert result == {
        "type": "result",
        "subtype": "success",
        "session_id": session_id,
        "is_error": False,
        "duration_ms": 100,
        "num_turns": 1,
        "result": f"out\n{cwd}\n",
        "total_cost_usd": 0,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    assert {event["session_id"] for event in events(out)} == {session_id}
    history = home / ".claude" / "projects" / re.sub(r"[^A-Za-z0-9]", "-", str(cwd)) / f"{session_id}.jsonl"
    assert history.read_bytes() == out
    assert history.stat().st_mode & 0o077 == 0


def test_init_is_out_before_the_command_runs(start: Start) -> None:
    """stdout is a pipe; without a flush the first event would come with the last."""
    process = start(*STREAM, "--", "sleep 3600")
    assert kinds(read_events(process, 3)) == ["system", "assistant", "assistant"]
    assert process.poll() is None


@pytest.mark.parametrize(
    ("prompt", "code", "output"),
    [
        ("echo out; echo err >&2; exit 7", 7, "out\nerr\n"),
        ("kill -9 $$", 1, ""),
        ("no-such-command-at-all", 127, "not found"),
        ("printf '\\377\\376'", 0, "\ufffd\ufffd"),
        ("cat", 0, ""),  # stdin is /dev/null
    ],
)
def test_how_the_command_ends_decides(start: Start, prompt: str, code: int, output: str) -> None:
    found_code, out, _ = run(start, *STREAM, "--", prompt)
    tool_result, result = events(out)[-2:]
    assert found_code == code
    assert (result["is_error"], result["subtype"]) == ((True, "error") if code else (False, "success"))
    assert tool_result["message"]["content"][0]["is_error"] is (code != 0)
    assert output in result["result"]


def test_output_is_bounded(start: Start) -> None:
    _, out, _ = run(start, *STREAM, "--", "head -c 20000000 /dev/zero | tr '\\0' x")
    text = events(out)[-1]["result"]
    assert len(text) < MAX_OUTPUT_BYTES + 100
    assert text.endswith(f"[{20_000_000 - MAX_OUTPUT_BYTES} more bytes left out]")


def test_a_background_process_does_not_delay_the_result(start: Start) -> None:
    started_s = time.monotonic()
    code, out, _ = run_until_exit(start, "sleep 3600 & echo done")
    assert (code, events(out)[-1]["result"]) == (0, "done\n")
    assert time.monotonic() - started_s < DRAIN_S + 5


def run_until_exit(start: Start, prompt: str) -> tuple[int, bytes, bytes]:
    """Like `run`, for those that leave a child on the pipe: reads what there is, not to the end."""
    process = start(*STREAM, "--", prompt)
    code = process.wait(LIMIT_S)
    assert process.stdout is not None
    return code, os.read(process.stdout.fileno(), 1 << 16), b""


@pytest.mark.parametrize("output_format", [(), ("--output-format", "text"), ("--output-format=text",)])
def test_text_mode_inherits_the_streams_and_the_exit_code(
    start: Start, home: pathlib.Path, output_format: tuple[str, ...]
) -> None:
    code, out, err = run(start, "-p", *output_format, "echo out; echo err >&2; echo $MARK; exit 9")
    assert (code, out, err) == (9, b"out\n42\n", b"err\n")
    assert not (home / ".claude").exists()


def test_json_mode_prints_the_result_alone(start: Start) -> None:
    code, out, _ = run(start, "-p", "--output-format", "json", "echo hi")
    assert code == 0
    assert [event["result"] for event in events(out)] == ["hi\n"]


# --- the command line ---------------------------------------------------------------------------------------------

EVERYTHING = (
    "--append-system-prompt", "--looks-like-a-flag", "--settings", '{"a": 1}', "--effort", "high", "--model=opus",
    "--disallowed-tools", "Bash(rm:*)", "WebFetch", "--tools", "",
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        (*STREAM, "echo one"),
        (*STREAM, "--", "echo one"),
        (*STREAM, "ignored", "echo one"),
        (*STREAM, *EVERYTHING, "--", "echo one"),
        ("echo one", *STREAM),
        ("echo one", *STREAM, "--resume"),
        (*STREAM, "--tools", "Bash", "--verbose", "echo one"),
        (*STREAM, "--", "--not-the-prompt", "echo one"),
        (*STREAM, "--settings", "--", "echo one"),
    ],
)
def test_the_prompt_is_the_last_positional(start: Start, arguments: tuple[str, ...]) -> None:
    code, out, err = run(start, *arguments)
    assert (code, err) == (0, b"")
    assert events(out)[-1]["result"] == "one\n"


def test_variadic_flags_swallow_a_prompt_without_dashes(start: Start) -> None:
    """The production bug that `--` before the prompt is there for."""
    code, out, err = run(start, *STREAM, "--tools", "Bash", "echo one", stdin=b"")
    assert (code, out) == (1, b"")
    assert b"Input must be provided" in err


def test_a_prompt_after_dashes_may_look_like_a_flag(start: Start) -> None:
    _, out, _ = run(start, *STREAM, "--", "--version")
    assert events(out)[2]["message"]["content"][0]["input"] == {"command": "--version"}


@pytest.mark.parametrize("arguments", [("--frobnicate",), ("-x", "echo"), ("--output-format", "yaml", "echo")])
def test_unknown_flags_are_errors(start: Start, arguments: tuple[str, ...]) -> None:
    code, out, err = run(start, *arguments)
    assert (code, out) == (1, b"")
    assert err.startswith(b"error: ")


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_the_prompt_comes_from_stdin_when_there_is_none(start: Start, size: int) -> None:
    prompt = b"echo $((6*7)) # " + "ü".encode() * size
    code, out, _ = run(start, *STREAM, stdin=prompt)
    assert (code, events(out)[-1]["result"]) == (0, "42\n")


@pytest.mark.parametrize("arguments", [(), ("",), ("--", " \n")])
def test_no_prompt_at_all_is_an_error(start: Start, arguments: tuple[str, ...]) -> None:
    code, out, err = run(start, *STREAM, *arguments, stdin=b"")
    assert (code, out) == (1, b"")
    assert b"Input must be provided" in err


def test_prompts_that_bash_cannot_take(start: Start) -> None:
    code, out, _ = run(start, *STREAM, stdin=b"echo a\0b")
    assert code == 1
    assert "cannot be started" in events(out)[-1]["result"]
    code, out, _ = run(start, *STREAM, b"echo '\xff'")
    assert (code, events(out)[-1]["result"]) == (0, "\ufffd\n")


def test_a_prompt_over_the_limit_is_refused(start: Start) -> None:
    process = start(*STREAM, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with pytest.raises(BrokenPipeError):
        for _ in range(20):
            process.stdin.write(b"x" * (1 << 20))
    assert process.wait(LIMIT_S) == 1


# --- sessions -----------------------------------------------------------------------------------------------------


def test_resuming_continues_the_same_session(start: Start, home: pathlib.Path) -> None:
    _, first, _ = run(start, *STREAM, "--", "echo 1")
    session_id = events(first)[0]["session_id"]
    code, second, _ = run(start, *STREAM, "--resume", session_id, "--", "echo 2")
    assert code == 0
    assert {event["session_id"] for event in events(second)} == {session_id}
    assert [path.read_bytes() for path in home.rglob("*.jsonl")] == [first + second]


@pytest.mark.parametrize("session_id", ["mock-unknown", "", ".", "..", "../x", "a/b", "a\nb", "x" * 300])
@pytest.mark.parametrize("output_format", ["text", "stream-json"])
def test_an_unknown_session_is_an_error(start: Start, home: pathlib.Path, session_id: str, output_format: str) -> None:
    code, out, err = run(start, "-p", "--output-format", output_format, "--resume", session_id, "--", "touch ran")
    assert (code, out) == (1, b"")
    assert err.decode() == f"No conversation found with session ID: {session_id}\n"
    assert list(home.rglob("*.jsonl")) == []


def test_an_unwritable_history_does_not_stop_it(start: Start, home: pathlib.Path) -> None:
    (home / ".claude").write_text("a file is in the way")
    code, out, err = run(start, *STREAM, "--", "echo 1")
    assert (code, len(events(out))) == (0, 5)
    assert b"no history" in err


def test_session_ids_are_unique_ordered_and_legal() -> None:
    ids = []
    for _ in range(5):
        ids += [new_session_id() for _ in range(20)]
        time.sleep(0.002)  # ids of different milliseconds are ordered, those of one need not be
    assert len(set(ids)) == len(ids)
    assert [ids[n] for n in range(0, 100, 20)] == sorted(ids[n] for n in range(0, 100, 20))
    uuid7 = re.compile(r"mock-[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(uuid7.fullmatch(found) and re.fullmatch(names.SESSION_ID, found) for found in ids)
    assert all(is_safe_id(found) for found in ids)


@pytest.mark.parametrize(
    ("folder", "encoded"),
    [("/home/user/workspace", "-home-user-workspace"), ("/a/b_c.d é", "-a-b-c-d--"), ("/", "-")],
)
def test_folders_are_encoded_like_the_real_cli(folder: str, encoded: str) -> None:
    assert encode_folder(folder) == encoded


# --- scenarios ----------------------------------------------------------------------------------------------------

QUICK = {
    "@fail:it broke": (1, [], b"it broke\n"),
    "@fail-no-newline:it broke": (1, [], b"it broke"),
    "@fail-invalid-utf8": (1, [], b"before \xff\xfe\xed\xa0\x80 after\n"),
    "@exit-after-result": (0, ["system", "result"], b""),
    "@no-result": (0, ["system"], b""),
    "@stdout-over-limit-x": (
        1,
        [],
        b"mock-claude: 'x' is not a number of bytes (the prompts it knows are listed in scenarios.py)\n",
    ),
}


@pytest.mark.parametrize("prompt", QUICK)
def test_scenarios_that_end(start: Start, prompt: str) -> None:
    code, out, err = run(start, *STREAM, "--", prompt)
    assert (code, kinds(events(out)), err) == QUICK[prompt]


def test_long_invalid_stderr(start: Start) -> None:
    code, out, err = run(start, *STREAM, "--", "@fail-invalid-utf8-long")
    assert (code, out, len(err)) == (1, b"", 256 * 1024)
    with pytest.raises(UnicodeDecodeError):
        err.decode()


def test_invalid_stdout(start: Start) -> None:
    code, out, _ = run(start, *STREAM, "--", "@stdout-invalid-utf8")
    first, second, third = out.splitlines()
    assert (code, json.loads(first)["type"], json.loads(third)["type"]) == (0, "system", "result")
    with pytest.raises(UnicodeDecodeError):
        second.decode()


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_one_long_line(start: Start, size: int) -> None:
    code, out, _ = run(start, *STREAM, "--", f"@stdout-over-limit-{size}")
    assert code == 0
    assert [len(line) for line in out.splitlines()][1] == size


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_a_flood_is_valid_events_of_about_that_size(start: Start, home: pathlib.Path, size: int) -> None:
    code, out, _ = run(start, *STREAM, "--", f"@flood:{size}")
    found = events(out)
    assert code == 0
    assert (found[0]["type"], found[-1]["type"]) == ("system", "result")
    flooded = sum(len(line) + 1 for line in out.splitlines()[1:-1])
    assert size <= flooded < size + 10_000
    assert len(next(home.rglob("*.jsonl")).read_bytes().splitlines()) == 2


HANGING = {
    "@stuck-tool": ["system", "assistant"],
    "@stuck-tool-deaf": ["system", "assistant"],
    "@stuck-tool-closed-stdout-deaf": ["system", "assistant"],
    "@hang-after-result": ["system", "result"],
    "@hang-after-result-deaf": ["system", "result"],
    "@hang-after-result-then-event": ["system", "result", "assistant"],
    "@hang-after-result-periodic-events": ["system", "result", "assistant", "assistant"],
    "@hang-after-error-result": ["system", "result"],
    "@close-stdout": ["system"],
    '@ECHO-HANG@\n{"type": "x"}\n\n{"type": "y"}': ["x", "y"],
}
CLOSING = ("@stuck-tool-closed-stdout-deaf", "@close-stdout")


@pytest.mark.parametrize("prompt", HANGING)
def test_scenarios_that_hang(start: Start, prompt: str) -> None:
    process = start(*STREAM, "--", prompt)
    found = read_events(process, len(HANGING[prompt]))
    assert kinds(found) == HANGING[prompt]
    assert found[1]["is_error"] is ("error" in prompt) if found[-1]["type"] == "result" else True
    assert process.stdout is not None
    if prompt in CLOSING:
        assert select.select([process.stdout], [], [], LIMIT_S)[0]
        assert process.stdout.read() == b""
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    if "deaf" in prompt:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.kill()
        assert process.wait(LIMIT_S) == -signal.SIGKILL
    else:
        assert process.wait(LIMIT_S) == -signal.SIGTERM


def test_an_orphan_holds_the_pipe(start: Start) -> None:
    process = start(*STREAM, "--", "@orphan-pipe")
    assert kinds(read_events(process, 2)) == ["system", "result"]
    assert process.wait(LIMIT_S) == 0
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 0.3)[0] == [], "stdout is at its end, nobody holds it"


def test_the_environment_can_be_looked_at(start: Start, tmp_path: pathlib.Path) -> None:
    code, out, _ = run(start, *STREAM, "--", f"@write-env-json:{tmp_path / 'env.json'}")
    assert (code, kinds(events(out))) == (0, ["system", "result"])
    assert json.loads((tmp_path / "env.json").read_text())["MARK"] == "42"
    code, out, err = run(start, *STREAM, "--", "@write-env-json:/no/such/folder/x")
    assert (code, out) == (1, b"")
    assert b"No such file" in err


def test_echo_replays_verbatim(start: Start, home: pathlib.Path) -> None:
    lines = '{"type": "system", "subtype": "init", "session_id": "mock-mine"}\n{"b":1,  "a":"ü"}\n[1, 2]\n'
    code, out, _ = run(start, *STREAM, "--", f"@ECHO@\n\n{lines}")
    assert (code, out.decode()) == (0, lines)
    assert [path.name for path in home.rglob("*.jsonl")] == ["mock-mine.jsonl"]
    code, out, err = run(start, *STREAM, "--", "@ECHO@\n{}\nnot json")
    assert (code, out) == (1, b"")
    assert b"line 2 to echo is not JSON" in err


def test_an_echoed_session_id_cannot_leave_the_folder(start: Start, home: pathlib.Path) -> None:
    line = '{"type": "system", "subtype": "init", "session_id": "../../../evil"}'
    assert run(start, *STREAM, "--", f"@ECHO@\n{line}")[0] == 0
    assert [path.name[:5] for path in home.rglob("*.jsonl")] == ["mock-"]


@pytest.mark.parametrize("prompt", [prompt for prompt in [*HANGING, *QUICK] if "fail" not in prompt])
def test_text_mode_has_nothing_to_hang_on(start: Start, prompt: str) -> None:
    assert run(start, "-p", "--", prompt) == (0, b"", b"")


def test_failing_also_works_in_text_mode(start: Start) -> None:
    assert run(start, "-p", "--", "@fail:broken") == (1, b"", b"broken\n")


def test_a_reader_that_went_away_ends_it(start: Start) -> None:
    process = start(*STREAM, "--", "@flood:1000000000")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(LIMIT_S) == 1


def test_the_table_in_the_docstring_names_every_scenario() -> None:
    listed = set(re.findall(r"`(@[^`<]*)", scenarios.__doc__ or ""))
    assert listed == {*scenarios.EXACT, *scenarios.WITH_ARGUMENT, *scenarios.FIRST_LINE}


def test_starting_loads_nothing_slow() -> None:
    """A run starts this once, an interactive test hundreds of times."""
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import vm0.guest_mock_claude.main; "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, capture_output=True, text=True)
    slow = {"argparse", "asyncio", "dataclasses", "inspect", "logging", "selectors", "socket", "subprocess", "typing"}
    assert slow & set(loaded.stdout.split()) == set()
    assert COMMAND[1:3] == ["-I", "-S"]
