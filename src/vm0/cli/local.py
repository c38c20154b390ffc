"""Server and runner inside this process, on a state directory that other vm0 commands may use at the same time.

::

    HOME/server/            state of the server; server.lock is held by whoever runs it
    HOME/server/server.json where it listens, {url, pid, userTokenFile, runnerTokenFile}, as long as it runs
    HOME/clients.lock       held shared by every command that uses somebody else's server, alone by one that ends its
                            own: so none loses a server it relies on
    HOME/starting.lock      held by the one command that starts a server now; server.lock decides, this saves the others
                            from loading a server in vain
    HOME/runner/local-N/    state of the runners of `vm0 run`; a free one is reused, which cleans up after a crash

Whoever comes first runs the server for the others too, and stays until they are done.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass

from vm0.cli.api import ApiClient, ApiError
from vm0.cli.config import Secret
from vm0.cli.errors import CliError
from vm0.cli.local_sandboxes import RUNNER_SLOTS, Wanted, local_config, private_home, slot_dir
from vm0.contracts.runs import Isolation, RunStatus

START_LIMIT_S = 30.0  # to find or start a server; a few seconds even on a slow disk
LOOK_EVERY_S = 0.1
CLIENTS_EVERY_S = 0.5
LOCAL_GROUP_PREFIX = "local/run-"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServer:
    """A server of this machine; `owned`: it lives in this process."""

    url: str
    user_token: Secret
    runner_token: Secret
    owned: bool


def server_dir(home: pathlib.Path) -> pathlib.Path:
    return home / "server"


@contextlib.asynccontextmanager
async def local_server(home: pathlib.Path, say: Say) -> AsyncIterator[LocalServer]:
    """The server of `home`: the one that runs, or one in this process, which stays until all its users are done."""
    private_home(home)
    async with contextlib.AsyncExitStack() as stack:
        clients = stack.enter_context(_opened_lock(home / "clients.lock"))
        starting = stack.enter_context(_opened_lock(home / "starting.lock"))
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if _try_lock(clients, fcntl.LOCK_SH):
                if (found := await _running(home)) is not None:
                    yield found
                    return
                if _try_lock(starting, fcntl.LOCK_EX) and (url := await _started(stack, home)) is not None:
                    fcntl.flock(starting, fcntl.LOCK_UN)
                    server = LocalServer(url=url, owned=True, **_tokens(home))
                    if _try_lock(clients, fcntl.LOCK_EX):
                        await _cancel_orphans(server)
                    fcntl.flock(clients, fcntl.LOCK_UN)
                    try:
                        yield server
                    finally:
                        await _wait_for_clients(clients, say)
                    return
                fcntl.flock(starting, fcntl.LOCK_UN)
                fcntl.flock(clients, fcntl.LOCK_UN)
            await asyncio.sleep(LOOK_EVERY_S)  # somebody is starting or ending a server at this moment
        raise CliError(
            f"a server holds {server_dir(home)} but does not answer",
            hint=f"look at the process named in {server_dir(home) / 'server.lock'}, or use another VM0_HOME",
        )


@contextlib.asynccontextmanager
async def announced(home: pathlib.Path, host: str, port: int) -> AsyncIterator[str]:
    """A server in this process that other commands find through `server.json`; its address."""
    from vm0.server.config import ServerConfig
    from vm0.server.service import running_server

    folder = server_dir(private_home(home))
    async with running_server(ServerConfig.from_env(state_dir=folder), host, port) as handle:
        tokens = {f"{kind}TokenFile": str(_token_file(home, kind)) for kind in ("user", "runner")}
        _write_private(folder / "server.json", json.dumps({"url": handle.url, "pid": os.getpid(), **tokens}))
        try:
            yield handle.url
        finally:
            (folder / "server.json").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRunner:
    """A runner of this process: what its sandboxes are made with, and the facts that its backend tells."""

    backend: str
    isolation: Isolation
    facts: Mapping[str, str]


@contextlib.asynccontextmanager
async def local_runner(
    home: pathlib.Path, server: LocalServer, group: str, wanted: Wanted, say: Say
) -> AsyncIterator[LocalRunner]:
    """A runner in this process that serves `group` only. `say` is told of what takes long at its start."""
    from vm0.runner.backends import make_factory
    from vm0.runner.config import Secret as RunnerSecret
    from vm0.runner.errors import StateDirectoryInUse
    from vm0.runner.service import running_runner

    for slot in range(RUNNER_SLOTS):
        config = local_config(
            home, slot_dir(home, slot), wanted,
            server_url=server.url, token=RunnerSecret(server.runner_token), group=group,
        )  # fmt: skip
        async with contextlib.AsyncExitStack() as stack:
            try:
                factory = make_factory(config, say)
                runner = await stack.enter_async_context(running_runner(config, factory))
            except StateDirectoryInUse:
                continue
            yield LocalRunner(
                backend=factory.backend, isolation=Isolation(runner.isolation.value), facts=factory.describe()
            )
            return
    raise CliError(f"{RUNNER_SLOTS} runners use {home} already", hint="wait for some of them to end")


async def _started(stack: contextlib.AsyncExitStack, home: pathlib.Path) -> str | None:
    """The address of our own server, None if another process just started one."""
    from vm0.server.errors import ServerError

    _quiet_logs()
    try:
        return await stack.enter_async_context(announced(home, "127.0.0.1", 0))
    except ServerError:
        if _server_lock_is_held(home):
            return None
        raise


def _server_lock_is_held(home: pathlib.Path) -> bool:
    try:
        with _opened_lock(server_dir(home) / "server.lock") as descriptor:
            return not _try_lock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False


async def _running(home: pathlib.Path) -> LocalServer | None:
    """The server that `server.json` names, if it answers."""
    try:
        found = json.loads((server_dir(home) / "server.json").read_bytes())
        url = str(found["url"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    async with ApiClient(url, "") as client:
        if not await client.healthy():
            return None
    return LocalServer(url=url, owned=False, **_tokens(home))


async def _cancel_orphans(server: LocalServer) -> None:
    """Cancel what killed `vm0 run` commands left in the queue: nobody but they would have executed it."""
    async with ApiClient(server.url, server.user_token) as client:
        with contextlib.suppress(ApiError):
            pending = await client.list_runs(limit=100, status=RunStatus.PENDING)
            for run in pending.runs:
                if run.group.startswith(LOCAL_GROUP_PREFIX):
                    await client.cancel(run.run_id)


async def _wait_for_clients(clients: int, say: Say) -> None:
    """Until no other command uses our server; an interrupt ends the wait, and the server with it."""
    told = False
    try:
        while not _try_lock(clients, fcntl.LOCK_EX):
            if not told:
                say("other vm0 commands still use this server; waiting for them (Ctrl-C ends it)")
                told = True
            await asyncio.sleep(CLIENTS_EVERY_S)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or not told:
            raise
        task.uncancel()


def _tokens(home: pathlib.Path) -> dict[str, Secret]:
    return {f"{kind}_token": Secret(_token_file(home, kind).read_text("ascii").strip()) for kind in ("user", "runner")}


def _token_file(home: pathlib.Path, kind: str) -> pathlib.Path:
    """The file with the token that commands of this machine use; made once."""
    from vm0.server.tokens import create_token

    path = server_dir(home) / f"cli-{kind}.token"
    if not path.exists():
        _write_private(path, create_token(server_dir(home), "runner" if kind == "runner" else "user"))
    return path


def _write_private(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


@contextlib.contextmanager
def _opened_lock(path: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _quiet_logs() -> None:
    """Server and runner in this process log to stderr, which here is for the user: only what went wrong."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="vm0: %(name)s: %(message)s")
