"""Compare inventories across a block: what it started must be gone when it ends."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

from tests.support.inventory import Difference, diff, take_inventory

CHECKED = ("processes", "descriptors")
SETTLE_S = 5.0  # exit is asynchronous: a killed process is a zombie, its pipe ends open, for a moment
RECHECK_S = 0.05


@contextlib.contextmanager
def no_leaks(settle_s: float | None = None, marker: str = "") -> Iterator[None]:
    """Raise AssertionError with the difference if children or descriptors differ after the block.

    An error inside the block is more interesting than what it left behind, so then nothing is compared.
    """
    gc.collect()  # what earlier tests dropped must not vanish inside the block
    before = take_inventory(marker=marker)
    yield
    deadline = time.monotonic() + (SETTLE_S if settle_s is None else settle_s)
    while difference := diff(before, take_inventory(marker=marker), CHECKED):
        if time.monotonic() >= deadline:
            raise AssertionError(_message(difference))
        gc.collect()
        time.sleep(RECHECK_S)


def _message(difference: Difference) -> str:
    return f"children or descriptors differ from before the test (+ new, - gone):\n{difference}"
