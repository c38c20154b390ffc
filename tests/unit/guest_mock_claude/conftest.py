"""Runs the mock as the process it is in a guest, in a session of its own that ends with the test."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[3] / "src"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from vm0.guest_mock_claude.main import main
sys.exit(main(sys.argv[2:]))
"""
COMMAND = [sys.executable, "-I", "-S", "-c", PROGRAM, str(SOURCE)]

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "work_dir.v1").mkdir()
    return tmp_path / "home"


@pytest.fixture
def cwd(home: pathlib.Path) -> pathlib.Path:
    return home.parent / "work_dir.v1"


@pytest.fixture
def start(home: pathlib.Path, cwd: pathlib.Path) -> Iterator[Start]:
    """`start(*arguments)` gives a running mock with piped streams; whatever is left is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def go(*arguments: str | bytes, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=cwd,
            env={"HOME": str(home), "PATH": os.environ["PATH"], "MARK": "42"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,  # so that select tells the truth about what can be read
        )
        started.append(process)
        return process

    yield go
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
