"""Named start-up steps: each within its limit, each with an undo; a failed start leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from vm0.microvm.finishing import to_the_end
from vm0.sandbox import SandboxError, StartError

T = TypeVar("T")
Undo = Callable[[], Awaitable[None] | None]
log = logging.getLogger("vm0.microvm")


class Startup:
    """The steps of one start. `seconds` says how long each took."""

    def __init__(self) -> None:
        self._undo: list[tuple[str, Undo]] = []
        self._undoing: asyncio.Task[None] | None = None
        self._over = False
        self.seconds: dict[str, float] = {}

    def owns(self, name: str, undo: Undo) -> None:
        """What must be undone from here on. Raises StartError when the start has been undone meanwhile: who starts goes
        no further then, and undoes this."""
        self._undo.append((name, undo))
        if self._over:
            raise StartError(name, "it was stopped meanwhile")

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A step that takes no time worth a limit. Raises StartError with its name for whatever expected goes wrong."""
        begun = time.monotonic()
        try:
            yield
        except StartError:
            raise
        except (SandboxError, OSError) as exc:
            raise StartError(name, str(exc), hint=getattr(exc, "hint", "")) from exc
        finally:
            self.seconds[name] = time.monotonic() - begun

    async def step(self, name: str, work: Awaitable[T], *, limit_s: float) -> T:
        """Do one step. Raises StartError with its name when it fails or takes longer than its limit."""
        with self.timed(name):
            try:
                async with asyncio.timeout(limit_s):
                    return await work
            except TimeoutError as exc:
                raise StartError(name, f"not done within {limit_s:g} s") from exc

    async def undo(self) -> None:
        """Undo everything, newest first; a failure is logged and the rest is undone all the same. Idempotent: whoever
        calls it returns when all is undone, whoever began with it. Cancelled, it finishes first."""
        self._over = True
        if self._undoing is None or self._undoing.done():
            self._undoing = asyncio.create_task(self._undo_all(), name="undo a start")
        await to_the_end(self._undoing)

    async def _undo_all(self) -> None:
        while self._undo:
            name, undo = self._undo.pop()
            try:
                pending = undo()
                if pending is not None:
                    await pending
            except Exception as exc:
                log.error("undoing %s failed: %r", name, exc, extra={"action": "undo_failed"})
