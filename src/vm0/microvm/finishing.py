"""Work that must not be left half done: whoever waits for it may be cancelled, and then waits all the same.

`asyncio.shield` lets a cancelled caller go on at once, with the work still under way behind its back: what it would
clean up next is in use, and what the work brings belongs to nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vm0.microvm import threads

T = TypeVar("T")
log = logging.getLogger("vm0.microvm")


async def to_the_end(work: Awaitable[T], *, discard: Callable[[T], Awaitable[None] | None] | None = None) -> T:
    """The result of `work`, which is awaited to its end even if the caller is cancelled (as often as it may be).

    A cancelled caller gets CancelledError, after `discard` was given the result that it will not have; a failure of the
    work is lost then, and one of `discard` logged. Whoever calls this bounds the time of the work.
    """
    working = asyncio.ensure_future(work)
    cancelled = await _ended(working)
    if cancelled is None:
        return working.result()
    if not working.cancelled() and working.exception() is None and discard is not None:
        await _discarded(discard, working.result())
    raise cancelled


async def in_thread(
    function: Callable[[], T], name: str, *, discard: Callable[[T], Awaitable[None] | None] | None = None
) -> T:
    """`to_the_end` of blocking work in a thread of its own."""
    return await to_the_end(asyncio.wrap_future(threads.start(function, name)), discard=discard)


async def _discarded(discard: Callable[[T], Awaitable[None] | None], result: T) -> None:
    try:
        pending = discard(result)
        if pending is not None:
            discarding = asyncio.ensure_future(pending)
            await _ended(discarding)
            discarding.result()
    except Exception as exc:
        log.error("discarding %r failed: %r", result, exc, extra={"action": "discard_failed"})


async def _ended(working: asyncio.Future[T]) -> asyncio.CancelledError | None:
    """Wait; returns the first cancellation of the waiting itself."""
    cancelled = None
    while not working.done():
        try:
            await asyncio.wait((working,))
        except asyncio.CancelledError as exc:
            cancelled = cancelled or exc
    return cancelled
