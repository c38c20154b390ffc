"""A sandbox around a guest endpoint: states, crash notice, and every operation handed to the guest.

A backend adds how its guest comes to life (`_launch`) and how it is ended by force (`_terminate`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import BinaryIO

from vm0.sandbox import (
    DirectoryEntry,
    ExecRequest,
    ExecResult,
    FileStat,
    InvalidStateError,
    IsolationTier,
    Process,
    RestoreRequest,
    SandboxConfig,
    SandboxError,
    SandboxOperationError,
    StartError,
    State,
    next_state,
)
from vm0.sandbox_common.limits import check_sandbox_id
from vm0.vsock_host import GuestClient

log = logging.getLogger("vm0.sandbox")

LIVING = (State.RUNNING, State.QUIESCED, State.PAUSED)


class GuestSandbox:
    """Base of the backends' sandboxes; implements `vm0.sandbox.Sandbox` but for what only a backend knows."""

    def __init__(self, config: SandboxConfig, isolation: IsolationTier) -> None:
        check_sandbox_id(config.sandbox_id)
        self.config = config
        self._isolation = isolation
        self._state = State.CREATED
        self._client: GuestClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._crash: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ending = asyncio.Lock()
        self._starting: asyncio.Future[None] | None = None  # done when a start is over

    @property
    def sandbox_id(self) -> str:
        return self.config.sandbox_id

    @property
    def state(self) -> State:
        return self._state

    @property
    def isolation(self) -> IsolationTier:
        return self._isolation

    async def start(self) -> None:
        next_state(self._state, "start")  # refuse before anything is started
        if self._starting is not None:
            raise InvalidStateError("start", "starting")
        self._starting = asyncio.get_running_loop().create_future()
        try:
            self._client = await self._launch()
            if self._state is State.STOPPED:
                raise StartError("launch", "it was stopped meanwhile")
        except BaseException as exc:
            self._state = next_state(self._state, "stop")
            await asyncio.shield(self._terminate())
            if isinstance(exc, (SandboxError, OSError)) and not isinstance(exc, StartError):
                raise StartError("launch", str(exc), log_tail=self._log_tail()) from exc
            raise
        finally:
            self._starting.set_result(None)
        self._state = next_state(self._state, "start")
        self._watcher = asyncio.create_task(self._watch(self._client), name=f"watch {self.sandbox_id}")

    async def stop(self) -> None:
        async with self._ending:
            asked = self._state in (State.RUNNING, State.QUIESCED)  # a paused one cannot answer
            if asked and self._client is not None:
                self._state = next_state(self._state, "stop")
                with contextlib.suppress(SandboxOperationError):
                    await self._client.shutdown()
            await self._end()

    async def kill(self) -> None:
        async with self._ending:
            await self._end()

    async def crashed(self) -> str:
        return await asyncio.shield(self._crash)

    async def exec(self, request: ExecRequest) -> ExecResult:
        return await self._guest("exec").exec(request)

    async def start_process(self, request: ExecRequest) -> Process:
        return await self._guest("exec").start_process(request)

    async def write_file(
        self, path: str, data: bytes | BinaryIO, *, mode: int = 0o644, user: str = "", private: bool = False
    ) -> int:
        return await self._guest("write_file").write_file(path, data, mode=mode, user=user, private=private)

    async def read_file(self, path: str, out: BinaryIO, *, limit: int | None = None) -> int:
        return await self._guest("read_file").read_file(path, out, limit=limit)

    async def stat(self, path: str, *, follow: bool = True) -> FileStat | None:
        return await self._guest("stat").stat(path, follow=follow)

    async def list_directory(self, path: str) -> list[DirectoryEntry]:
        return await self._guest("list_directory").list_directory(path)

    async def quiesce(self) -> int:
        following = next_state(self._state, "quiesce")
        running = await self._guest("quiesce").quiesce()
        if self._state in (State.RUNNING, State.QUIESCED):  # it may have died or been stopped while we waited
            self._state = following
        return running

    async def resume(self) -> None:
        following = next_state(self._state, "resume")
        await self._guest("resume").resume()
        if self._state in (State.RUNNING, State.QUIESCED):
            self._state = following

    async def restore(self, request: RestoreRequest) -> None:
        next_state(self._state, "operate")
        await self._guest("restore").restore(request)

    # a backend implements these

    async def _launch(self) -> GuestClient:
        """Bring the guest up to a finished handshake. May leave anything behind when it fails: `_terminate` follows."""
        raise NotImplementedError

    async def _terminate(self) -> None:
        """End the guest by force and wait until it is gone; also half-started ones, also twice."""
        raise NotImplementedError

    def _log_tail(self) -> str:
        """The last lines the guest or its VMM printed, for errors."""
        return ""

    async def _death_note(self, why: str) -> str:
        """`why` the link was lost, with what the backend knows of it. Bounded."""
        return why

    def _guest(self, operation: str) -> GuestClient:
        if self._client is None or self._state in (State.CREATED, State.STOPPED):
            next_state(self._state, operation if operation in ("quiesce", "resume") else "operate")
        assert self._client is not None
        return self._client  # a crashed guest's client refuses with reason `crashed`; a quiesced one's by itself

    async def _watch(self, client: GuestClient) -> None:
        why = await client.lost()
        if self._state in LIVING:
            self._state = next_state(self._state, "crash")
            why = await self._death_note(why)
            log.warning(
                "sandbox %s died: %s",
                self.sandbox_id,
                why,
                extra={"action": "sandbox_crashed", "sandbox_id": self.sandbox_id},
            )
            if not self._crash.done():
                self._crash.set_result(why)

    async def _end(self) -> None:
        self._state = next_state(self._state, "stop")
        if self._client is not None:
            self._client.close("the sandbox was stopped")
        await asyncio.shield(self._terminate())
        if self._starting is not None:  # a start under way undoes what it has done since
            await asyncio.shield(self._starting)
        if self._watcher is not None:
            await self._watcher
            self._watcher = None
