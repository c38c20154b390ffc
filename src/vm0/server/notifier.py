"""Wakes long polls in this process: a topic is a run (`run/...`), a queue (`group/...`) or a runner (`runner/...`).

A waiter subscribes *before* it looks at the database, so nothing that happens in between is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


def run_topic(run_id: str) -> str:
    return f"run/{run_id}"


def runner_topic(runner_id: str) -> str:
    return f"runner/{runner_id}"


def queue_topic(group: str) -> str:
    return f"group/{group}"


class Notifier:
    """Belongs to one event loop. After `close` nobody waits any more."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    @contextlib.contextmanager
    def subscribed(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set at each `wake(topic)`; the waiter clears it."""
        event = asyncio.Event()
        if self.closed:
            event.set()
        self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[topic]
            waiting.discard(event)
            if not waiting:
                del self._waiting[topic]

    def wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()

    def has_waiters(self, topic: str) -> bool:
        return topic in self._waiting

    def close(self) -> None:
        """Wake everybody for good: the server is stopping."""
        self.closed = True
        for topic in self._waiting:
            self.wake(topic)
