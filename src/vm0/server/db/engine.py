"""The database file: opened safely, written by one thread, read by a few.

One writer: SQLite allows one at a time anyway, and versions before 3.51.3 can lose a WAL reset when several
connections write. `write` hands a function to the writer thread, which puts all functions that wait at that moment
into one transaction (`BEGIN IMMEDIATE`, one savepoint each) and answers after its COMMIT.

`synchronous=FULL`: in WAL mode, NORMAL survives a crash of this process but may lose the last commits in a power
failure. What we acknowledge is durable, so each commit is synced; grouping pays for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from vm0.contracts.errors import ErrorCode
from vm0.server.db import migrations
from vm0.server.errors import ApiError, ServerError, storage_failure

log = logging.getLogger("vm0.server.db")
T = TypeVar("T")

MAX_WAITING_WRITES = 2000  # beyond it callers are told to come back
MAX_GROUP = 128  # writes per transaction: bounds how long the first of them waits
FULL_CHECK_BYTES = 256 * 1024 * 1024  # a file up to this size is checked page by page at start (about a second)


@dataclasses.dataclass(slots=True)
class _Job:
    work: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


class Database:
    """Owns the file's connections and threads; `open` may be called once, `close` any number of times."""

    def __init__(self, path: pathlib.Path, reader_threads: int) -> None:
        self._path = path
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._writer_engine = _engine(path, "BEGIN IMMEDIATE", StaticPool)
        self._reader_engine = _engine(path, "BEGIN", QueuePool, pool_size=reader_threads, max_overflow=0)
        self._readers = ThreadPoolExecutor(reader_threads, thread_name_prefix="vm0-db-reader")
        self._writer = threading.Thread(target=self._run_writer, name="vm0-db-writer", daemon=True)
        self._closed = False

    def open(self) -> None:
        """Check the file, bring its schema up to date, start the writer; a bad file is a ServerError, left as it is."""
        _check_file(self._path)
        try:
            self._migrate()
        except BaseException as exc:
            self._writer_engine.dispose()
            if not isinstance(exc, (DBAPIError, OSError)):
                raise
            raise ServerError(
                f"cannot open the database {self._path}: {exc.orig if isinstance(exc, DBAPIError) else exc}",
                hint="is the disk full or read-only? nothing was changed",
            ) from exc
        self._path.chmod(0o600)
        self._writer.start()

    def _migrate(self) -> None:
        with self._writer_engine.connect() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            if mode != "wal":
                raise ServerError(
                    f"the file system of {self._path} cannot hold a database in WAL mode (it is {mode!r})",
                    hint="use a local disk for the state directory",
                )
            version = migrations.current(connection)
            if version is not None and version > migrations.HEAD:
                raise ServerError(
                    f"{self._path} has schema version {version}, made by a newer vm0 than this one",
                    hint="start the newer version again, or use another state directory",
                )
            if version != migrations.HEAD:
                migrations.upgrade(connection)
            connection.commit()

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in the writer's transaction; returns after it is durable. What it raises undoes only itself.

        A caller that is cancelled gives up the answer, not the write.
        """
        if self._closed or self._jobs.qsize() >= MAX_WAITING_WRITES:
            raise ApiError(ErrorCode.UNAVAILABLE, "the server is closing or overloaded; try again later")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._jobs.put(job)
        value: T = await job.future
        return value

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on one consistent view of the database, in a reader thread."""
        if self._closed:
            raise ApiError(ErrorCode.UNAVAILABLE, "the server is closing; try again later")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._reader_engine.connect() as connection:
            return work(connection)

    def close(self) -> None:
        """Finish what was handed over, then close; a later call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._writer.is_alive():
            self._jobs.put(None)
            self._writer.join()
        self._readers.shutdown(wait=True)
        self._reader_engine.dispose()
        self._writer_engine.dispose()

    def _run_writer(self) -> None:
        with self._writer_engine.connect() as connection:
            while (group := self._next_group()) is not None:
                _commit(connection, group)
                _answer(group)

    def _next_group(self) -> list[_Job] | None:
        first = self._jobs.get()
        if first is None:
            return None
        group = [first]
        while len(group) < MAX_GROUP:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # close after this group
                break
            group.append(job)
        return group


def _commit(connection: Connection, group: list[_Job]) -> None:
    """One transaction for the group: a job's own error undoes that job, the storage's failure fails them all."""
    try:
        for job in group:
            _attempt(connection, job)
        connection.commit()
    except Exception as exc:
        with contextlib.suppress(Exception):  # SQLite has rolled back by itself after some errors
            connection.rollback()
        if connection.invalidated or connection.closed:
            log.error("the writer's connection is unusable: %s", exc, extra={"action": "db_writer_broken"})
        for job in group:
            job.error = job.error or exc


def _attempt(connection: Connection, job: _Job) -> None:
    connection.exec_driver_sql("SAVEPOINT job")
    try:
        job.value = job.work(connection)
    except Exception as exc:
        if storage_failure(exc) is not None:
            raise
        job.error = exc
        connection.exec_driver_sql("ROLLBACK TO job")
    connection.exec_driver_sql("RELEASE job")


def _answer(group: list[_Job]) -> None:
    """Wake the callers, one loop call per loop (there is one, but tests may have several)."""
    for loop in {id(job.loop): job.loop for job in group}.values():
        mine = [job for job in group if job.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop is gone; nobody waits
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.value)


def _engine(path: pathlib.Path, begin: str, pool: type[sa.Pool], **pool_options: Any) -> Engine:
    reader = begin == "BEGIN"
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=pool,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": 5.0},
        **pool_options,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        if reader:
            connection.execute("PRAGMA query_only = ON")
            return
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA secure_delete = ON")  # a deleted secret is overwritten, not only unlinked

    @sa.event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _check_file(path: pathlib.Path) -> None:
    """Raises ServerError for a file that is no sound database. Read-only, so that evidence stays as it is."""
    if not path.exists():
        with _creation_errors(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        return
    size = path.stat().st_size
    if size == 0:
        return
    check = "PRAGMA quick_check(1)" if size <= FULL_CHECK_BYTES else "SELECT count(*) FROM sqlite_master"
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            found = connection.execute(check).fetchone()[0]
    except sqlite3.DatabaseError as exc:
        found = str(exc)
    if isinstance(found, str) and found != "ok":
        raise ServerError(
            f"the database {path} is damaged: {found.splitlines()[0]}",
            hint=f"restore it from a backup, or move {path.name} and {path.name}-wal away to start empty; "
            "nothing was changed",
        )


@contextlib.contextmanager
def _creation_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ServerError(f"cannot create the database {path}: {exc.strerror}") from exc
