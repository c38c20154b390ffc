"""Who fetches what when: a few threads, each taking the next item that overlaps none in progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from vm0.guest_download.plan import Item, next_ready

WORKERS = 4


class Schedule:
    """Items to hand out. Every `take` must be followed by a `finish`."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._pending = list(items)
        self._running: list[Item] = []
        self._changed = threading.Condition()

    def take(self) -> Item | None:
        """The next item, as soon as there is one that may start; None when all are handed out."""
        with self._changed:
            while self._pending:
                item = next_ready(self._pending, self._running)
                if item is not None:
                    self._pending.remove(item)
                    self._running.append(item)
                    return item
                self._changed.wait()  # for a `finish`: something overlapping is running, and its time is limited
            return None

    def finish(self, item: Item) -> None:
        with self._changed:
            self._running.remove(item)
            self._changed.notify_all()


def run_all(items: Sequence[Item], work: Callable[[Item], None], workers: int = WORKERS) -> None:
    """Call `work(item)` for every item, at most `workers` at a time. `work` must not raise."""
    schedule = Schedule(items)

    def worker() -> None:
        while (item := schedule.take()) is not None:
            try:
                work(item)
            finally:
                schedule.finish(item)

    threads = [threading.Thread(target=worker, name=f"download-{n}") for n in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
