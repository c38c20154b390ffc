"""Server and runner inside `vm0 run`, shared between commands, with the process backend."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pathlib
import signal
import socket

import pytest

from tests.unit.cli.conftest import Cli, ended, eventually, json_lines
from vm0.cli.api import ApiClient
from vm0.cli.config import Settings, state_dir
from vm0.cli.errors import CliError
from vm0.cli.local import local_server
from vm0.contracts.runs import RunRequest, RunStatus
from vm0.server.tokens import create_token

LOCAL = ("run", "--backend", "process", "--agent", "command")


def quiet(text: str) -> None:
    """Nothing is expected to be said."""
    raise AssertionError(text)


async def test_a_run_from_end_to_end(cli: Cli, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    words = [*LOCAL, "--artifact", str(folder), "--output", str(tmp_path / "out"), "--env", "A=b", "--json"]
    code, stdout, stderr = await cli.run(*words, 'cat README; echo "$A" > new; rm -r src')
    records = json_lines(stdout)
    assert code == 0, stderr
    assert records[-1]["status"] == "completed"
    assert [r["event"]["text"] for r in records if r["type"] == "event" and r["event"]["type"] == "output"] == ["hello"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README", "link", "new"}
    assert (tmp_path / "out" / "new").read_text() == "b\n"
    assert (folder / "src" / "run.sh").exists()
    assert "isolates nothing" in stderr
    assert not (cli.home / "state" / "server" / "server.json").exists()


async def test_exit_code_and_stdout_are_the_commands(cli: Cli) -> None:
    code, stdout, _ = await cli.run(*LOCAL, "echo out; echo err >&2; exit 42")
    assert (code, stdout) == (42, "out\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "no-such"], "there is no recipe 'no-such'"),
        (["--backend", "qemu", "--image", "no-such"], "there is no recipe 'no-such'"),
        (["--backend", "firecracker"], "--backend process"),
        (["--backend", "process", "--image", "base"], "--image is for virtual machines"),
    ],
)
async def test_no_backend_is_taken_silently(words: list[str], said: str, cli: Cli) -> None:
    code, stdout, stderr = await cli.run("run", *words, "x")
    assert (code in (2, 125), stdout) == (True, "")
    assert said in stderr
    assert not (cli.home / "state").exists(), "nothing may start for a backend that is not there"


async def test_more_isolation_than_there_is(cli: Cli) -> None:
    code, _, stderr = await cli.run(*LOCAL, "--isolation", "emulated-vm", "x")
    assert code == 125
    assert "less than the demanded `emulated-vm`" in stderr


async def test_a_second_command_uses_the_first_ones_server(cli: Cli, tmp_path: pathlib.Path) -> None:
    gates = {name: tmp_path / name for name in ("one", "two")}
    for path in gates.values():
        os.mkfifo(path)
    first = await cli.start(*LOCAL, f"read line < {gates['one']}; echo one")
    try:
        await _url(cli)
        second = await cli.start(*LOCAL, f"read line < {gates['two']}; echo two")
        await asyncio.to_thread(gates["two"].write_text, "")  # returns when the second agent reads: both are running
        await asyncio.to_thread(gates["one"].write_text, "go\n")
        assert (await ended(second))[:2] == (0, "two\n")
        code, stdout, stderr = await ended(first)
    finally:
        if first.returncode is None:
            first.kill()
            await first.wait()
    assert (code, stdout) == (0, "one\n"), stderr
    assert stderr.count("starting") == 0
    code, stdout, _ = await cli.run("runs", "ls", "--json")
    runs = json.loads(stdout)["runs"]
    assert [run["status"] for run in runs] == ["completed", "completed"]
    assert len({run["group"] for run in runs}) == 2


async def test_the_owner_of_a_server_waits_for_its_users(cli: Cli, tmp_path: pathlib.Path) -> None:
    """Its own run is over; the server stays until the other command is done, or until an interrupt."""
    home = cli.home / "state"
    os.mkfifo(tmp_path / "gate")
    owner = await cli.start(*LOCAL, f"read line < {tmp_path / 'gate'}")
    url = await _url(cli)
    with _client_lock(home):
        await asyncio.to_thread((tmp_path / "gate").write_text, "go\n")
        assert owner.stderr is not None
        while b"other vm0 commands still use this server" not in await owner.stderr.readline():
            assert not owner.stderr.at_eof()
        async with ApiClient(url, _token(home)) as client:
            (run,) = (await client.list_runs()).runs
            assert run.status is RunStatus.COMPLETED
        owner.send_signal(signal.SIGINT)
        code, _, _ = await ended(owner)
    assert code == 0, "the run went well; the interrupt only ended the wait"


def _client_lock(home: pathlib.Path):
    file = (home / "clients.lock").open("rb+")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _token(home: pathlib.Path) -> str:
    return (home / "server" / "cli-user.token").read_text()


async def _url(cli: Cli) -> str:
    """The address of the server that some command of `cli` has started."""
    path = cli.home / "state" / "server" / "server.json"
    await eventually(path.exists, "no server came up")
    return str(json.loads(await asyncio.to_thread(path.read_text))["url"])


async def test_a_stale_server_file_is_no_server(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "state"
    (home / "server").mkdir(parents=True)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (home / "server" / "server.json").write_text(json.dumps({"url": url, "pid": 1}))
        async with local_server(home, quiet) as server:
            assert server.owned
            assert server.url != url
    assert not (home / "server" / "server.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"url": 5}'])
async def test_a_damaged_server_file_is_no_server(text: str, tmp_path: pathlib.Path) -> None:
    home = tmp_path / "state"
    (home / "server").mkdir(parents=True)
    (home / "server" / "server.json").write_text(text)
    async with local_server(home, quiet) as server:
        assert server.owned


async def test_a_lock_without_a_server_is_an_error_in_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vm0.cli.local.START_LIMIT_S", 1.0)
    home = tmp_path / "state"
    (home / "server").mkdir(parents=True)
    with (home / "server" / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CliError, match="does not answer"):
            async with local_server(home, quiet):
                pass


async def test_runs_nobody_would_execute_are_cancelled(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "state"
    async with local_server(home, quiet) as server, ApiClient(server.url, server.user_token) as client:
        orphan = await client.create_run(RunRequest(prompt="x", group="local/run-dead"))
        other = await client.create_run(RunRequest(prompt="x"))
    async with local_server(home, quiet) as server, ApiClient(server.url, server.user_token) as client:
        assert (await client.run(orphan.run_id)).status is RunStatus.CANCELLED
        assert (await client.run(other.run_id)).status is RunStatus.PENDING


async def test_six_commands_at_once_share_one_server(cli: Cli) -> None:
    """Whoever comes first serves; nobody fails, and nothing is left behind."""
    results = await asyncio.gather(*(cli.run("runs", "ls", "--json") for _ in range(6)))
    assert [(code, json.loads(stdout)) for code, stdout, _ in results] == [(0, {"runs": []})] * 6
    assert not (cli.home / "state" / "server" / "server.json").exists()


async def test_server_and_runner_as_processes_of_their_own(cli: Cli, tmp_path: pathlib.Path) -> None:
    server = await cli.start("server", "--port", "0")
    runner = None
    try:
        assert server.stdout is not None
        url = (await server.stdout.readline()).decode().strip()
        code, stdout, _ = await cli.run("token", "create", "--kind", "runner")
        assert code == 0 and stdout.startswith("vm0_runner_")
        token_file = tmp_path / "runner.token"
        await asyncio.to_thread(token_file.write_text, stdout)
        words = ["--server", url, "--token-file", str(token_file), "--backend", "process"]
        runner = await cli.start("runner", "start", *words)
        variables = {"VM0_SERVER_URL": url, "VM0_TOKEN": create_token(cli.home / "state" / "server", "user")}
        assert (await cli.run("run", "--agent", "command", "echo there", **variables))[:2] == (0, "there\n")
    finally:
        for process in (runner, server):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                code, _, stderr = await ended(process)
                assert code == 0, stderr


async def test_a_second_server_on_the_same_state_directory(cli: Cli) -> None:
    async with local_server(cli.home / "state", quiet):
        code, stdout, stderr = await cli.run("server", "--port", "0")
    assert (code, stdout) == (1, "")
    assert f"another server (pid {os.getpid()}) is using" in stderr and "hint: " in stderr


def test_a_port_in_use(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = cli("server", "--port", str(listener.getsockname()[1]))
    assert (found.returncode, found.stdout) == (1, b"")
    assert b"Address already in use\nhint: " in found.stderr


async def test_a_runner_without_token_says_what_it_lacks(cli: Cli) -> None:
    code, _, stderr = await cli.run("runner", "start", "--server", "http://127.0.0.1:1")
    assert code == 1
    assert stderr.startswith("error: token")
    assert "vm0 token create --kind runner" in stderr or "VM0_RUNNER_TOKEN" in stderr


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_dir({"VM0_HOME": "/x"}) == pathlib.Path("/x")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert state_dir({"HOME": "/h"}) == pathlib.Path("/h/.local/state/vm0")
    assert state_dir({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == pathlib.Path("/s/vm0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_dir({"HOME": "/h"}) == pathlib.Path("/var/lib/vm0")
    settings = Settings.from_environment({"VM0_TOKEN": "secret", "NO_COLOR": "1"})
    assert settings.plain and "secret" not in repr(settings)
    assert not Settings.from_environment({"TERM": "xterm"}).plain
    assert Settings.from_environment({"TERM": "dumb"}).plain
