"""The few things we ask QEMU over its monitor (QMP), with time limits and errors of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from vm0.microvm.finishing import to_the_end
from vm0.sandbox import SandboxError

CONNECT_S = 10.0
ANSWER_S = 10.0
MIGRATE_S = 120.0
FINALIZE_POLL_S = 0.002
MAX_MESSAGE_BYTES = 256 * 1024  # what we ask for is answered in hundreds of bytes
UNLIMITED = 1 << 40  # bytes per second: the other end is a file in memory
UNDER_WAY = ("setup", "active", "device", "pre-switchover", "cancelling")  # of a migration


class MonitorError(SandboxError):
    """QEMU refused a request or does not answer"""


class Monitor:
    """One connection; `close` it. Every method raises MonitorError."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._qmp = QMPClient("vm0", readbuflen=MAX_MESSAGE_BYTES)
        self._qmp.logger.disabled = True  # it logs what is raised to us anyway
        self._qmp.events.event_filter = lambda event: False  # it would keep all for ever; each of ours has a listener

    async def connect(self) -> None:
        """Within 10 s; QEMU answers as soon as it has read its command line."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._qmp.connect(self._sock)
        except TimeoutError:
            raise MonitorError(f"the monitor does not answer within {CONNECT_S:g} s") from None
        except (QMPError, OSError) as exc:
            raise MonitorError(f"the monitor does not answer: {exc}") from exc

    async def close(self) -> None:
        """Idempotent; a QEMU that is gone is no error."""
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._qmp.disconnect()
        self._sock.close()

    async def stop(self) -> None:
        """Stop the vCPUs and let the devices finish what they were doing. Idempotent."""
        await self._execute("stop")

    async def cont(self) -> None:
        """Let the vCPUs run (again). Idempotent."""
        await self._execute("cont")

    async def balloon(self, memory_bytes: int) -> None:
        """Ask the guest to get along with this much memory."""
        await self._execute("balloon", value=memory_bytes)

    async def save_state(self, fd: int, *, with_memory: bool) -> None:
        """Write the state of the stopped VM to a descriptor (which stays the caller's): with its memory, or without,
        for memory that is mapped shared and so is in its file already. Failed or cancelled, nothing goes on: a
        migration would stop the VM at its end, whoever had made it run by then."""
        await self._prepare_migration(with_memory)
        with self._qmp.listener("MIGRATION") as events:
            try:
                self._qmp.send_fd_scm(fd)
            except OSError as exc:
                raise MonitorError(f"QEMU takes no descriptor: {exc}") from exc
            await self._execute("getfd", fdname="state")
            try:
                await self._execute("migrate", uri="fd:state")
                await self._migrated(events, "saved")
                await self._finalized()
            except BaseException:
                with contextlib.suppress(MonitorError, TimeoutError):  # the first error says why
                    await to_the_end(self._cancel_migration())
                raise

    async def load_state(self, fd: int, *, with_memory: bool = False) -> None:
        """Read the state from the descriptor with this number in QEMU. Returns when the VM is complete; it
        stands still, as it did when it was saved."""
        await self._prepare_migration(with_memory)
        with self._qmp.listener("MIGRATION") as events:
            await self._execute("migrate-incoming", uri=f"fd:{fd}")
            await self._migrated(events, "loaded")

    async def _prepare_migration(self, with_memory: bool) -> None:
        """The same on both ends: it decides the format."""
        states = [{"capability": "events", "state": True}, {"capability": "x-ignore-shared", "state": not with_memory}]
        await self._execute("migrate-set-capabilities", capabilities=states)
        await self._execute("migrate-set-parameters", **{"max-bandwidth": UNLIMITED})

    async def _migrated(self, events: EventListener, what: str) -> None:
        try:
            async with asyncio.timeout(MIGRATE_S):
                async for event in events:
                    status = event["data"]["status"]  # type: ignore[index]  # JSON
                    if status == "completed":
                        return
                    if status in ("failed", "cancelled"):
                        raise MonitorError(f"the state cannot be {what}: {await self._why()}")
        except TimeoutError:
            raise MonitorError(f"the state was not {what} within {MIGRATE_S:g} s") from None
        raise MonitorError(f"QEMU ended before the state was {what}")

    async def _cancel_migration(self) -> None:
        await self._execute("migrate_cancel")
        async with asyncio.timeout(ANSWER_S):
            while True:  # there is no event when there was nothing to cancel
                if (await self._execute("query-migrate")).get("status") not in UNDER_WAY:
                    break
                await asyncio.sleep(FINALIZE_POLL_S)
        await self._finalized()

    async def _finalized(self) -> None:
        """QEMU says *completed* a moment before it lets the VM go on, and has no event for that."""
        try:
            async with asyncio.timeout(ANSWER_S):
                while True:
                    if (await self._execute("query-status"))["status"] != "finish-migrate":
                        return
                    await asyncio.sleep(FINALIZE_POLL_S)
        except TimeoutError:
            raise MonitorError(f"the VM cannot go on {ANSWER_S:g} s after its state was saved") from None

    async def _why(self) -> str:
        info = await self._execute("query-migrate")
        return str(info.get("error-desc", "QEMU does not say why"))

    async def _execute(self, command: str, **arguments: object) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._qmp.execute(command, arguments)
        except ExecuteError as exc:
            raise MonitorError(f"QEMU refuses {command}: {exc.error_class}: {exc}") from exc
        except TimeoutError:  # an OSError, too
            raise MonitorError(f"{command}: no answer within {ANSWER_S:g} s") from None
        except (QMPError, OSError) as exc:
            raise MonitorError(f"{command}: the monitor is gone: {exc}") from exc
