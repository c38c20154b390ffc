"""Network namespaces for VMs, made in the background before they are needed.

`async with NamespacePool() as pool`: takes a pool index of this host, cleans up after dead owners, then keeps `spare`
namespaces ready. Acquiring a ready one does no I/O at all. One that is released is removed and another one made.

A creation belongs to nobody until it is done: it goes to whoever has waited longest, else to the ready ones. So a
cancelled `acquire` loses nothing, and a slow creation delays only the last in line.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vm0.microvm import threads
from vm0.microvm.finishing import in_thread, to_the_end
from vm0.microvm.netns.errors import NamespaceError
from vm0.microvm.netns.host import AUTOMATIC, Host, LinuxHost
from vm0.microvm.netns.names import NETNS_DIR
from vm0.microvm.netns.namespace import Namespace
from vm0.microvm.netns.plan import NAMESPACES

log = logging.getLogger("vm0.microvm.netns")

RUN_DIR = Path("/run/vm0")
T = TypeVar("T")


class NamespacePool:
    """Up to 256 namespaces of one process; 64 such pools on a host.

    `run_dir` holds the leases: every pool of a host must use the same one, else they remove each other's namespaces.
    `spare` are kept ready; up to `parallel` are made or removed at once. `resolver` is where VMs' DNS goes: "auto" (the
    first nameserver of the host, as it is on entering, that is not loopback), an IPv4 address, or None for no DNS.
    `refill_delay_s` after a ready one was taken another is made: who took it starts a VM now, and wants the processor.
    Needs root and `nft`. One use: enter it once.
    """

    def __init__(
        self,
        run_dir: Path = RUN_DIR,
        *,
        spare: int = 2,
        parallel: int = 4,
        refill_delay_s: float = 0.0,
        resolver: str | None = AUTOMATIC,
        netns_dir: Path = NETNS_DIR,
        host: Host | None = None,
    ) -> None:
        self._host = host or LinuxHost(run_dir, netns_dir, resolver)
        self._spare, self._refill_delay_s = spare, refill_delay_s
        self._refilling: asyncio.TimerHandle | None = None
        self._slots = asyncio.Semaphore(parallel)
        self._index: int | None = None
        self._free = deque(range(NAMESPACES))  # oldest first: a number rests before it is used again
        self._ready: deque[Namespace] = deque()
        self._leased: dict[int, Namespace] = {}
        self._waiters: deque[asyncio.Future[Namespace]] = deque()
        self._creations: set[asyncio.Task[None]] = set()
        self._removals: dict[int, asyncio.Task[NamespaceError | None]] = {}

    @property
    def index(self) -> int | None:
        """The pool index while entered."""
        return self._index

    @property
    def ready(self) -> int:
        """How many can be acquired at once."""
        return len(self._ready)

    async def __aenter__(self) -> NamespacePool:
        """Raises NamespaceError; then, and when cancelled, nothing is held."""
        self._index = await in_thread(self._host.open, "netns-open", discard=self._close_host)
        log.info("network pool %02x taken", self._index, extra={"action": "netns_pool_opened"})
        self._refill()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Removes all namespaces, acquired ones too. Raises NamespaceError if one resists, after all have been tried.

        Cancelled, it finishes first.
        """
        await to_the_end(self._close())

    async def acquire(self) -> Namespace:
        """A namespace of its own for a VM. At once (without I/O) if one is ready, else it is made on demand.

        Raises NamespaceError with a hint. Safe to cancel: what is under way stays with the pool.
        """
        if self._index is None:
            raise NamespaceError("the network pool is not open")
        if self._ready:
            namespace = self._ready.popleft()
            self._leased[namespace.slot.number] = namespace
            self._refill_later()
            return namespace
        return await self._wait_for_one()

    async def release(self, namespace: Namespace) -> None:
        """Remove it and forget its connections. Idempotent; finishes in the background when cancelled.

        Raises NamespaceError if something of it is left; its number is not used again then.
        """
        number = namespace.slot.number
        if self._leased.get(number) is namespace:
            del self._leased[number]
            self._start_removal(namespace)
        if (removal := self._removals.get(number)) and (error := await asyncio.shield(removal)):
            raise error

    async def _wait_for_one(self) -> Namespace:
        waiter: asyncio.Future[Namespace] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._serve_waiters()
        self._refill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self._offer(self._leased.pop(waiter.result().slot.number))  # it arrived with the cancellation
            raise

    def _offer(self, namespace: Namespace) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._leased[namespace.slot.number] = namespace
                waiter.set_result(namespace)
                return
        self._ready.append(namespace)

    def _fail_one(self, error: NamespaceError) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return True
        return False

    def _serve_waiters(self) -> None:
        """There must be a creation for each who waits; who finds no number left fails."""
        while len(self._creations) < len(self._waiters):
            if self._free:
                self._start_creation(demanded=True)
            else:
                self._fail_one(
                    NamespaceError(
                        f"all {NAMESPACES} network namespaces of pool {self._index:02x} are in use",
                        hint="release some first, or start another runner on this host: it has a pool of its own",
                    )
                )

    def _refill(self) -> None:
        missing = len(self._waiters) + self._spare - len(self._ready) - len(self._creations)
        for _ in range(min(missing, len(self._free))):
            self._start_creation(demanded=False)

    def _refill_later(self) -> None:
        if not self._refill_delay_s:
            self._refill()
        elif self._refilling is None:
            self._refilling = asyncio.get_running_loop().call_later(self._refill_delay_s, self._refill_now)

    def _refill_now(self) -> None:
        self._refilling = None
        if self._index is not None:
            self._refill()

    def _start_creation(self, *, demanded: bool) -> None:
        number = self._free.popleft()
        task = asyncio.create_task(self._create(number, demanded), name=f"netns-create-{number:02x}")
        self._creations.add(task)
        task.add_done_callback(self._creations.discard)

    async def _create(self, number: int, demanded: bool) -> None:
        """Never raises. A failure concerns whoever waits if this was begun for a waiter, else it is only logged, and
        spare ones are not tried again until the next acquire: a broken host would be busy failing.
        """
        namespace, error = None, None
        try:
            async with self._slots:
                namespace = await self._in_thread(lambda: self._host.create(number), f"create-{number:02x}")
        except NamespaceError as exc:
            error = exc
        except Exception as exc:  # a bug, but one that an acquire must hear of rather than wait for ever
            error = NamespaceError(f"network namespace {number:02x}: {exc!r}")
            error.__cause__ = exc
        current = asyncio.current_task()
        assert current is not None
        self._creations.discard(current)
        if namespace is not None:
            self._offer(namespace)
            return
        assert error is not None
        self._free.append(number)
        if not (demanded and self._fail_one(error)):
            log.warning("%s", error, extra={"action": "netns_creation_failed"})
        self._serve_waiters()

    def _start_removal(self, namespace: Namespace) -> None:
        number = namespace.slot.number
        self._removals[number] = asyncio.create_task(self._remove(number), name=f"netns-remove-{namespace.name}")

    async def _remove(self, number: int) -> NamespaceError | None:
        """Never raises: nobody may be left to listen."""
        try:
            async with self._slots:
                await self._in_thread(lambda: self._host.remove(number), f"remove-{number:02x}")
        except NamespaceError as exc:
            log.error("%s", exc, extra={"action": "netns_removal_failed"})
            return exc
        finally:
            del self._removals[number]
        self._free.append(number)
        if self._index is not None:
            self._refill_later()
        return None

    async def _close(self) -> None:
        if self._index is None:
            return
        index, self._index = self._index, None
        if self._refilling is not None:
            self._refilling.cancel()
        while self._fail_one(NamespaceError("the network pool is closed")):
            pass
        await asyncio.gather(*self._creations, *self._removals.values())
        left = [*self._ready, *self._leased.values()]
        self._ready.clear()
        self._leased.clear()
        for namespace in left:
            self._start_removal(namespace)
        errors = [error for error in await asyncio.gather(*self._removals.values()) if error is not None]
        await self._close_host(index)
        log.info("network pool %02x given back", index, extra={"action": "netns_pool_closed"})
        if errors:
            raise errors[0]

    async def _close_host(self, index: int) -> None:
        await self._in_thread(self._host.close, "close")

    async def _in_thread(self, function: Callable[[], T], name: str) -> T:
        return await asyncio.wrap_future(threads.start(function, f"netns-{name}"))
