"""The command line itself: help that is fast, usage errors, versions, exit codes that need no server."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
import typing

import pytest

from tests.unit.cli.conftest import COMMAND, Cli
from vm0 import __version__
from vm0.cli import command_parts
from vm0.contracts.names import MAX_PROMPT_BYTES
from vm0.contracts.runs import AgentKind, Isolation, RunStatus
from vm0.image.architectures import ARCHITECTURES
from vm0.runner.config import BACKENDS

HEAVY = ("aiohttp", "alembic", "asyncio", "fastapi", "rich", "sqlalchemy", "uvicorn", "vm0.contracts", "vm0.image")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["runs", "ls", "-h"],
        ["runner", "start", "--help"],
        ["image", "build", "-h"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str], cli: Cli) -> None:
    code = (
        "import sys; from vm0.cli.main import main; code = main(sys.argv[1:])\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=cli.environment(), timeout=30
    )
    assert (found.returncode, found.stderr.strip()) == (0, "heavy: []")
    assert found.stdout


def test_help_costs_little_more_than_typer(cli: Cli) -> None:
    """Against the machine's own speed, since an absolute time says more about the machine than about us."""

    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=cli.environment())
        return time.perf_counter() - started

    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)  # bytecode may have to be written
    pairs = [(seconds("-m", "vm0.cli", "--help"), seconds("-c", "import typer")) for _ in range(9)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    assert ratio < 2.0, f"vm0 --help takes {ratio:.2f} times as long as importing typer"


def test_version(cli: Cli) -> None:
    found = cli("--version")
    assert (found.returncode, found.stdout.decode()) == (0, f"vm0 {__version__}\n")


def test_choices_are_those_of_the_contracts() -> None:
    assert typing.get_args(command_parts.Agent) == tuple(kind.value for kind in AgentKind)
    assert typing.get_args(command_parts.Tier) == tuple(tier.value for tier in Isolation)
    assert typing.get_args(command_parts.Status) == tuple(status.value for status in RunStatus)
    assert typing.get_args(command_parts.Backend) == BACKENDS
    assert typing.get_args(command_parts.Architecture) == tuple(ARCHITECTURES)


@pytest.mark.parametrize("words", [[], ["runs"], ["runner"], ["token"], ["image"]])
def test_a_group_without_command_shows_its_help_on_stderr(words: list[str], cli: Cli) -> None:
    found = cli(*words)
    assert (found.returncode, found.stdout) == (2, b"")
    assert b"Commands:" in found.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn"], "no such command 'runn'"),
        (["run"], "missing argument 'PROMPT'"),
        (["run", "--colour", "x"], "no such option"),
        (["run", "--agent", "gpt", "x"], "'gpt' is not one of"),
        (["run", "--timeout", "soon", "x"], "--timeout"),
        (["run", "--timeout", "0", "x"], "--timeout must be at least 1"),
        (["run", ""], "the prompt must not be empty"),
        (["run", " \n"], "the prompt must not be empty"),
        (["run", "--env", "1A=x", "x"], "--env: the name must be an identifier"),
        (["run", "--env", "NOT_THERE", "x"], "your environment has no NOT_THERE"),
        (["run", "--secret", "VM0_TOKEN=x", "x"], "names that start with VM0_ are reserved"),
        (["run", "--env", "A=1", "--secret", "A=2", "x"], "is also set in environment"),
        (["run", "--storage", ".", "x"], "has no mount path"),
        (["run", "--storage", ".:/a", "--storage", ".:/a", "x"], "two mounts have the same mountPath"),
        (["run", "--artifact", ".:/a/../b", "x"], "without empty, `.` or `..` components"),
        (["run", "--output", "out", "x"], "--output needs a folder that the run works on"),
        (["run", "--server", "ftp://host", "x"], "no token for ftp://host"),
        (["run", "--token-file", "/dev/null", "x"], "--token-file goes with --server"),
        (["runs", "ls", "--limit", "0"], "--limit"),
        (["token", "create"], "--kind"),
        (["server", "--port", "70000"], "--port"),
    ],
)
def test_wrong_usage(words: list[str], said: str, cli: Cli) -> None:
    found = cli(*words)
    assert (found.returncode, found.stdout) == (2, b"")
    assert found.stderr.startswith(b"error: ")
    assert said in found.stderr.decode()
    assert not (cli.home / "state").exists(), "a wrong command line must not start anything"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (b"a" * 10 * 1024 * 1024, f"is longer than {MAX_PROMPT_BYTES} bytes"),
        (b"a\0b", "holds a NUL character"),
        (b"caf\xe9", "is not UTF-8 text"),
        (b"", "must not be empty"),
    ],
)
def test_a_prompt_on_stdin_that_no_run_can_have(prompt: bytes, said: str, cli: Cli) -> None:
    found = cli("run", "-", stdin=prompt)
    assert found.returncode == 2
    assert said in found.stderr.decode()
    assert b"hint: " in found.stderr


def test_a_prompt_argument_that_is_not_utf8(cli: Cli) -> None:
    found = subprocess.run(
        [*(word.encode() for word in COMMAND), b"run", b"caf\xe9"], capture_output=True, env=cli.environment()
    )
    assert found.returncode == 2
    assert b"not valid text" in found.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [("/nope", "/nope does not exist"), ("/dev/null", "/dev/null is not a folder")],
)
def test_a_missing_folder_fails_before_anything_starts(option: str, said: str, cli: Cli) -> None:
    found = cli("run", "--artifact", option, "x")
    assert (found.returncode, found.stderr.decode().splitlines()[0]) == (125, f"error: {said}")
    assert not (cli.home / "state").exists()


def test_an_output_that_cannot_be_written_fails_before_the_run(cli: Cli) -> None:
    found = cli("run", "--artifact", str(cli.home), "--output", str(cli.home / "a" / "b"), "x")
    assert found.returncode == 125
    assert b"there is no folder" in found.stderr


def test_a_server_that_is_not_there(cli: Cli) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        found = cli("runs", "ls", "--server", url, VM0_TOKEN="vm0_user_x")
    assert found.returncode == 1
    assert found.stderr.decode().startswith(f"error: cannot reach the server at {url}: connection refused\nhint: ")


def test_something_else_than_a_server(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        import threading

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

        thread = threading.Thread(target=answer)
        thread.start()
        found = cli("runs", "ls", VM0_SERVER_URL=f"http://127.0.0.1:{listener.getsockname()[1]}", VM0_TOKEN="x")
        thread.join()
    assert found.returncode == 1
    assert b"answered GET /api/runs with something else" in found.stderr
