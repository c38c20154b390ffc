"""Runs the programs of a build: bounded in time, what they say in the build's log, nothing left behind.

Each runs in mount and process namespaces of its own: what it mounts inside the tree is gone with it, and so is every
process it started, whether it ends, is killed, or we are.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vm0.image.config import build_environment
from vm0.image.errors import BuildError

SHOWN_LINES = 15
SHOWN_LINE_LENGTH = 300
SHOWN_BYTES = 64 * 1024  # of the log's end, among which those lines are


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """`offline`: programs have no network. `keep_open` are descriptors that they hold, so that a lock is free only when
    all of them have ended."""

    log: Path
    offline: bool = False
    keep_open: tuple[int, ...] = ()
    environment: dict[str, str] = field(default_factory=build_environment)

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        what: str,
        timeout_s: float,
        hint: str = "",
        cwd: Path | None = None,
        answer: bool = False,
    ) -> bytes:
        """`what` names the step in errors. Returns what the program wrote on stdout if an `answer` is wanted, which is
        then not in the log. Raises BuildError with the last lines of the output."""
        words = [*container(self.offline), *(os.fspath(word) for word in argv)]
        self.note(f"$ {shlex.join(words)}")
        with open(self.log, "ab") as log:
            start = log.tell()
            try:
                status, output = self._finished(words, timeout_s, cwd, subprocess.PIPE if answer else log, log)
            except FileNotFoundError as exc:
                raise BuildError(f"{what}: {exc.filename} is not installed", hint=hint or "install it") from exc
            except subprocess.TimeoutExpired:
                raise self._failure(f"{what}: not done after {timeout_s:g} s", start, hint) from None
        if status != 0:
            how = f"exit code {status}" if status > 0 else f"signal {-status}"
            raise self._failure(f"{what}: {how}", start, hint)
        return output

    def _finished(
        self, words: list[str], timeout_s: float, cwd: Path | None, stdout: IO[bytes] | int, stderr: IO[bytes]
    ) -> tuple[int, bytes]:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=self.keep_open,
            start_new_session=True,  # an interrupt is for us; we end the program
        )
        with process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        return process.returncode, output or b""

    def note(self, text: str) -> None:
        with open(self.log, "a", encoding="utf-8", errors="replace") as log:
            log.write(f"[{time.strftime('%H:%M:%S')}] {text.rstrip()}\n")

    def _failure(self, message: str, start: int, hint: str) -> BuildError:
        with open(self.log, "rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(start, end - SHOWN_BYTES))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        shown = "".join(f"\n  | {line[:SHOWN_LINE_LENGTH]}" for line in lines[-SHOWN_LINES:])
        return BuildError(f"{message}{shown}\n  log: {self.log}", hint=hint, log=str(self.log))


def container(offline: bool) -> tuple[str, ...]:
    """The program that makes the namespaces, and kills what is in them when it or we end."""
    network = ("--net",) if offline else ()
    return (
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private", *network, "--"),
    )


def missing_program(*names: str) -> str:
    """The first that is not there, or an empty text."""
    path = build_environment()["PATH"]
    return next((name for name in names if shutil.which(name, path=path) is None), "")
