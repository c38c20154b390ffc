"""A real control plane and real runners as processes of their own, started and ended by a test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from vm0.cli.api import ApiClient
from vm0.contracts.runs import AgentKind, RunRequest, RunView
from vm0.sandbox_common.ownership import socket_directory
from vm0.server.tokens import create_token

START_S = 20.0
END_S = 30.0
VM0 = (sys.executable, "-m", "vm0.cli")


def command_run(prompt: str, **options: object) -> RunRequest:
    """A run whose agent is a shell command."""
    return RunRequest(prompt=prompt, cli_agent_type=AgentKind.COMMAND, **options)  # type: ignore[arg-type]


class Service:
    """A process whose first line on stdout, or a status file, tells that it is ready."""

    def __init__(self, arguments: Iterable[str], environment: dict[str, str], log: Path) -> None:
        self._arguments, self._environment, self._log = tuple(arguments), environment, log
        self.status_file = Path()
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Returns the first line on stdout ("" when it ended without one)."""
        if self.status_file.name:  # a killed predecessor's would say `running`
            self.status_file.unlink(missing_ok=True)
        with self._open_log() as log:
            self.process = await asyncio.create_subprocess_exec(
                *VM0, *self._arguments, env=os.environ | self._environment, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        if self._arguments[0] != "server":
            return ""
        async with asyncio.timeout(START_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def ready(self, limit_s: float = START_S) -> None:
        """Wait until a runner has finished its start: its status file says so."""
        assert self.process is not None
        async with asyncio.timeout(limit_s):
            while self.process.returncode is None:
                with contextlib.suppress(OSError, ValueError):
                    if json.loads(self.status_file.read_text())["mode"] == "running":
                        return
                await asyncio.sleep(0.02)  # a status file has no event to wait for
        raise AssertionError(f"it ended with {self.process.returncode} at its start\n{self.log_text()}")

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; SIGKILL after the limit. Returns the exit code."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.wait()

    async def wait(self) -> int:
        assert self.process is not None
        try:
            async with asyncio.timeout(END_S):
                return await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError(f"{self._arguments} did not end within {END_S} s\n{self.log_text()}") from None

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def _open_log(self):  # a binary file, closed by the caller
        return open(self._log, "ab")


class Cluster:
    """One server, any number of runners, and a client. `lease_ttl_s` is short, so that lost leases end in test time."""

    def __init__(self, folder: Path, *, lease_ttl_s: float = 2.0) -> None:
        self.folder = folder
        self.home = folder / "home"
        self._lease_ttl_s = lease_ttl_s
        self.port = 0
        self.url = ""
        self.server: Service | None = None
        self.runners: list[Service] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        self.home.mkdir(mode=0o700, parents=True)
        (self.home / "server").mkdir(mode=0o700)
        self._user_token = create_token(self.home / "server", "user")
        self._runner_token = create_token(self.home / "server", "runner")
        await self.start_server()
        self.api = await self._stack.enter_async_context(ApiClient(self.url, self._user_token))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()
        for service in [*self.runners, *([self.server] if self.server else [])]:
            if service.process is not None and service.process.returncode is None:
                await service.end(signal.SIGKILL)

    async def start_server(self) -> None:
        """Start it, or start it again on the same port."""
        arguments = ("server", "--port", str(self.port), "--state-dir", str(self.home))
        environment = {"VM0_SERVER_LEASE_TTL_S": str(self._lease_ttl_s)}
        self.server = Service(arguments, environment, self.folder / "server.log")
        self.url = await self.server.start()
        assert self.url, self.server.log_text()
        self.port = int(self.url.rpartition(":")[2])

    def runner(
        self,
        name: str = "r0",
        *,
        url: str = "",
        failpoints: str = "",
        concurrency: int = 2,
        backend: str = "process",
        settings: Mapping[str, str] | None = None,
    ) -> Service:
        """A runner with a state directory of its own; not started yet. `settings` are variables of its environment."""
        arguments = (
            *("runner", "start", "--backend", backend, "--max-concurrent", str(concurrency)),
            *("--server", url or self.url, "--state-dir", str(self.folder / name)),
        )
        environment = {"VM0_RUNNER_TOKEN": self._runner_token, "VM0_FAILPOINTS": failpoints, **(settings or {})}
        service = Service(arguments, environment, self.folder / f"{name}.log")
        service.status_file = self.folder / name / "status.json"
        self.runners.append(service)
        return service

    async def finished(self, run_id: str, limit_s: float = 40.0) -> RunView:
        """Wait for the end of a run, by the events' long poll."""
        async with asyncio.timeout(limit_s):
            while True:
                view = await self.api.run(run_id)
                if view.status.terminal:
                    return view
                await self.api.events(run_id, after=2**40, wait_s=1)

    def leftovers(self, name: str = "r0") -> list[str]:
        """What a runner that ended should not have left: sandboxes, sockets, journals, cgroups."""
        paths = (self.folder / name).rglob("*")
        found = [str(path) for path in paths if path.parent.name in ("sandboxes", "spool") or path.is_socket()]
        for backend in (self.folder / name).rglob("sandboxes"):
            sockets = socket_directory(backend.parent)
            found += [str(path) for path in sockets.rglob("*")] if sockets.exists() else []
        return found


@contextlib.asynccontextmanager
async def cutting_proxy(url: str, should_cut: asyncio.Event, needle: bytes) -> AsyncIterator[str]:
    """A TCP proxy that, while `should_cut` is set, drops the answer to the first request whose head has `needle`: the
    server has done it, the caller never learns. It clears `should_cut` then."""
    port = int(url.rpartition(":")[2])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: list[bool], up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if up and should_cut.is_set() and needle in data:
                    should_cut.clear()
                    cut[0] = True
                if not up and cut[0]:
                    break  # the answer came and goes nowhere
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        cut = [False]
        await asyncio.gather(pump(reader, up_writer, cut, True), pump(up_reader, writer, cut, False))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
