"""Ctrl-C in steps: the first asks politely, the second leaves, the third does not wait for anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from vm0.cli.errors import EXIT_INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Counts interrupts while installed. What the first one does is set by whoever can end things politely."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self.count = 0
        self.on_first: Callable[[], None] | None = None

    def _received(self) -> None:
        self.count += 1
        if self.count == 1 and self.on_first is not None:
            self.on_first()
        elif self.count <= 2:
            self._task.cancel()
        else:
            # What is left behind is cleaned up at the next start, as after a crash.
            os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def handled_interrupts() -> Iterator[Interrupts]:
    """Within: SIGINT, SIGTERM and SIGHUP cancel the current task unless `on_first` takes the first one."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("only for a running task")
    loop = asyncio.get_running_loop()
    interrupts = Interrupts(task)
    for number in SIGNALS:
        loop.add_signal_handler(number, interrupts._received)
    try:
        yield interrupts
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
