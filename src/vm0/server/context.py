"""What every request needs, made once per server: configuration, clock, database, objects, tokens, long polls."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, ParamSpec, TypeVar

from sqlalchemy.engine import Connection

from vm0.server import queue
from vm0.server.clock import Clock
from vm0.server.config import ServerConfig
from vm0.server.db import runs
from vm0.server.db.engine import Database
from vm0.server.errors import ServerError
from vm0.server.lock import StateLock
from vm0.server.notifier import Notifier
from vm0.server.objects import ObjectStore, UrlSigner
from vm0.server.registry import Offers, RunnerRegistry
from vm0.server.tokens import MasterKey, TokenStore, private_dir

log = logging.getLogger("vm0.server")
T = TypeVar("T")
P = ParamSpec("P")

DISK_THREADS = 8  # object store I/O and large JSON
LARGE_BODIES = 4  # bodies above 1 MiB that are in memory at once


@dataclasses.dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """The result of a write, and the long polls it concerns."""

    value: T
    topics: tuple[str, ...] = ()


class ServerContext:
    """Owns the state directory from construction to `close`; raises ServerError if it cannot be used."""

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        self.config, self.clock = config, clock
        private_dir(config.state_dir)
        self._lock = StateLock(config.state_dir)
        try:
            key = MasterKey(config.state_dir)
            self.tokens = TokenStore(config.state_dir, key, clock)
            self.signer = UrlSigner(key.derive("object-url-signing"), clock, config.object_url_ttl_s)
            self.objects = ObjectStore(config.objects_dir)
            self.objects.remove_stale()
            self.database = Database(config.database_path, config.reader_threads)
            self.database.open()
        except OSError as exc:
            self._lock.close()
            raise ServerError(f"cannot use the state directory {config.state_dir}: {exc.strerror}") from exc
        except BaseException:
            self._lock.close()
            raise
        self.notifier = Notifier()
        self.registry = RunnerRegistry(clock, config.runner_forget_s)
        self.offers = Offers(clock)
        self.large_bodies = asyncio.Semaphore(LARGE_BODIES)
        self._threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="vm0-server-disk")
        self._background: collections.deque[asyncio.Task[None]] = collections.deque()

    @property
    def ttl_ms(self) -> int:
        return int(self.config.lease_ttl_s * 1000)

    def times(self) -> queue.Times:
        return queue.Times(self.clock.now_ms(), self.clock.monotonic_ms(), self.ttl_ms)

    async def start(self) -> None:
        """Adopt the leases of an earlier process and start taking back those that expire."""
        until = self.clock.monotonic_ms() + self.ttl_ms
        await self.database.write(lambda connection: runs.extend_all_leases(connection, until))
        self._background.append(asyncio.create_task(self._reap(), name="vm0-server-reaper"))

    async def change(self, work: Callable[[Connection], Change[T]]) -> T:
        """Write, then wake whom it concerns."""
        done = await self.database.write(work)
        self.wake(done.topics)
        return done.value

    def wake(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self.notifier.wake(topic)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that takes a disk or a while; not for the database, which has its own threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def take_back_expired(self) -> None:
        """Take back the leases whose time is over. Reads first: nearly always there is none."""
        now_ms = self.clock.monotonic_ms()
        if await self.database.read(lambda connection: runs.has_expired(connection, now_ms)):
            times = self.times()
            self.wake(await self.database.write(lambda connection: queue.take_back_expired(connection, times)))

    async def _reap(self) -> None:
        interval_s = min(1.0, self.config.lease_ttl_s / 4)
        failing = False
        while not self.notifier.closed:
            try:
                await self.take_back_expired()
                failing = False
            except Exception:
                if not failing:  # once per outage, not once per second
                    log.exception("cannot look for expired leases", extra={"action": "reaper_failed"})
                failing = True
            await asyncio.sleep(interval_s)

    async def close(self) -> None:
        """Give everything back; safe to call again."""
        self.notifier.close()
        while self._background:
            task = self._background.popleft()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._close_files)

    def _close_files(self) -> None:
        self.database.close()
        self._threads.shutdown(wait=True)
        self._lock.close()
