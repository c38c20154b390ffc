from __future__ import annotations

import json
import os
import pathlib
import re
import threading

import pytest

from vm0.guest_common import operations
from vm0.guest_common.clock import rfc3339_ms
from vm0.guest_common.log import AGENT_TAG, MAX_MESSAGE_CHARS, Log, format_line, system_log
from vm0.guest_common.masking import Masker

LINE = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] \[(INFO|WARN|ERROR)\] \[sandbox:guest-agent\] (.*)\n")


def test_a_line_has_the_documented_form(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = system_log(AGENT_TAG, str(tmp_path))
    log.info("one")
    log.warn("two")  # noqa: G010 - not a logging.Logger
    log.error("three")
    log.close()
    written = (tmp_path / "system.log").read_text()
    assert [LINE.fullmatch(line).groups() for line in written.splitlines(keepends=True)] == [  # type: ignore[union-attr]
        ("INFO", "one"),
        ("WARN", "two"),
        ("ERROR", "three"),
    ]
    assert capfd.readouterr().err == written
    assert os.stat(tmp_path / "system.log").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "forged",
    ["a\nb", "a\r\nb", "a\x0bb", "a\x0cb", "a\x1cb", "a\x85b", "a\u2028b", "a\u2029b", "a\x1b[2Jb", "a\0b", "a\x9bb"],
)
def test_a_message_cannot_forge_a_line(forged: str) -> None:
    line = format_line("INFO", "t", forged)
    assert len(line.splitlines()) == 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line[:-1])


def test_a_lone_surrogate_is_written(tmp_path: pathlib.Path) -> None:
    log = Log(AGENT_TAG, str(tmp_path / "log"), stderr_fd=None)
    log.info("x\udc80y")
    log.close()
    assert (tmp_path / "log").read_text().endswith("x\\udc80y\n")


def test_a_long_message_is_cut() -> None:
    line = format_line("INFO", "t", "x" * (MAX_MESSAGE_CHARS + 5))
    assert line.endswith("… (5 more characters)\n")


def test_a_log_that_cannot_be_written_fails_nobody(tmp_path: pathlib.Path) -> None:
    closed_fd = os.open("/dev/null", os.O_WRONLY)
    os.close(closed_fd)
    log = Log(AGENT_TAG, str(tmp_path / "no" / "such" / "log"), stderr_fd=closed_fd)
    log.info("x")
    log.close()


def test_a_message_that_cannot_be_masked_is_withheld(tmp_path: pathlib.Path) -> None:
    log = Log(AGENT_TAG, str(tmp_path / "log"), stderr_fd=None)
    log.mask = Masker(["hunter2"]).mask_text
    log.info("my hunter2")

    def broken(text: str) -> str:
        raise RuntimeError

    log.mask = broken
    log.info("my hunter2")
    log.close()
    text = (tmp_path / "log").read_text()
    assert "my ***" in text and "withheld" in text and "hunter2" not in text


def test_lines_of_many_threads_do_not_mix(tmp_path: pathlib.Path) -> None:
    log = Log(AGENT_TAG, str(tmp_path / "log"), stderr_fd=None)

    def write(number: int) -> None:
        for _ in range(50):
            log.info(str(number) * 500)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    assert len(lines) == 400
    assert all((match := LINE.fullmatch(line)) and len(set(match[2])) == 1 for line in lines)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1.9996, "1970-01-01T00:00:01.999Z"),
        (1772366400.25, "2026-03-01T12:00:00.250Z"),
    ],
)
def test_times(at: float, text: str) -> None:
    assert rfc3339_ms(at) == text


def records(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_operations_record_how_a_block_ended(tmp_path: pathlib.Path) -> None:
    ops = operations.run_operations(str(tmp_path))
    ops.mask = Masker(["hunter2"]).mask_text
    with ops.timed("good"):
        pass
    with pytest.raises(OSError), ops.timed("raised"):
        raise OSError(2, "no hunter2\nhere")
    with ops.timed("said") as timing:
        timing.failed("x" * 5000)
    found = records(tmp_path / "sandbox-ops.jsonl")
    assert [(r["action_type"], r["success"], "error" in r) for r in found] == [
        ("good", True, False),
        ("raised", False, True),
        ("said", False, True),
    ]
    assert found[1]["error"] == "[Errno 2] no ***\\nhere"
    assert len(found[2]["error"]) == operations.MAX_ERROR_CHARS
    assert all(r["duration_ms"] >= 0 and len(r["ts"]) == 24 for r in found)


def test_operations_never_fail_what_they_time(tmp_path: pathlib.Path) -> None:
    with operations.Operations(str(tmp_path / "no" / "file")).timed("x"):
        pass
    operations.Operations(None).record("x", -5, True)
