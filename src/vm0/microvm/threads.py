"""Blocking work in a thread of its own, which ends with it.

A thread that has moved to another namespace must never serve anybody else, so there is no pool of them. New threads
start in the namespaces of the thread that started them.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vm0.microvm.syscalls import CLONE_NEWNET, setns

T = TypeVar("T")


def start(function: Callable[[], T], name: str) -> concurrent.futures.Future[T]:
    """Once started it cannot be cancelled: a cancelled waiter leaves the thread to end by itself, its result lost."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def call_inside(netns_path: Path, function: Callable[[], T]) -> T:
    """Call it in a thread that has entered the namespace; blocks. Raises what it raises, OSError if it cannot enter."""

    def enter() -> T:
        fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
        return function()

    return start(enter, f"in-{netns_path.name}").result()
