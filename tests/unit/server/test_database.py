"""The database: one writer, groups, durability, migrations."""

from __future__ import annotations

import asyncio
import pathlib
import sqlite3
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from vm0.contracts.errors import ErrorCode
from vm0.server.db import migrations, runs, schema
from vm0.server.db.engine import MAX_GROUP, Database
from vm0.server.db.schema import run_secrets
from vm0.server.errors import ApiError


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[Database]:
    opened = Database(tmp_path / "db.sqlite3", 2)
    opened.open()
    yield opened
    opened.close()


def put(num: int, text: str = "x") -> sa.Insert:
    return sa.insert(run_secrets).values(run_num=num, secrets=text)


def count(connection: Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(run_secrets)).scalar_one())


async def test_what_was_written_is_read(database: Database) -> None:
    await database.write(lambda connection: connection.execute(put(1)))
    assert await database.read(count) == 1


async def test_an_error_undoes_only_the_write_it_belongs_to(database: Database) -> None:
    gate = threading.Event()

    def hold(connection: Connection) -> None:
        """Keeps the writer busy until the others wait, so that they make one group."""
        assert gate.wait(10)

    def fail(connection: Connection) -> None:
        connection.execute(put(1000))
        raise ApiError(ErrorCode.CONFLICT, "no")

    holding = asyncio.create_task(database.write(hold))
    good = [asyncio.create_task(database.write(lambda c, n=n: c.execute(put(n)).rowcount)) for n in range(20)]  # type: ignore[misc]
    bad = asyncio.create_task(database.write(fail))
    twice = asyncio.create_task(database.write(lambda connection: connection.execute(put(0))))
    more = asyncio.create_task(database.write(lambda connection: connection.execute(put(50)).rowcount))
    await asyncio.sleep(0)  # the tasks hand their work over
    gate.set()
    await holding
    assert await asyncio.gather(*good, more) == [1] * 21
    with pytest.raises(ApiError, match="no"):
        await bad
    with pytest.raises(sa.exc.IntegrityError):
        await twice
    assert await database.read(count) == 21


async def test_many_writes_share_a_transaction(database: Database) -> None:
    gate = threading.Event()
    commits: list[object] = []
    sa.event.listen(database._writer_engine, "commit", commits.append)
    holding = asyncio.create_task(database.write(lambda _: gate.wait(10)))
    writes = [asyncio.create_task(database.write(lambda c, n=n: c.execute(put(n)).rowcount)) for n in range(MAX_GROUP)]  # type: ignore[misc]
    await asyncio.sleep(0)
    gate.set()
    await holding
    assert await asyncio.gather(*writes) == [1] * MAX_GROUP
    assert len(commits) <= 4


async def test_reading_cannot_write(database: Database) -> None:
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        await database.read(lambda connection: connection.execute(put(1)))


async def test_a_cancelled_caller_gives_up_the_answer_not_the_write(database: Database) -> None:
    gate = threading.Event()
    holding = asyncio.create_task(database.write(lambda _: gate.wait(10)))
    task = asyncio.create_task(database.write(lambda connection: connection.execute(put(1))))
    await asyncio.sleep(0)
    task.cancel()
    gate.set()
    await holding
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(lambda _: None)
    assert await database.read(count) == 1


async def test_closing_finishes_what_was_handed_over_and_refuses_the_rest(tmp_path: pathlib.Path) -> None:
    database = Database(tmp_path / "db.sqlite3", 1)
    database.open()
    writes = [asyncio.create_task(database.write(lambda c, n=n: c.execute(put(n)).rowcount)) for n in range(50)]  # type: ignore[misc]
    await asyncio.sleep(0)
    await asyncio.to_thread(database.close)
    assert await asyncio.gather(*writes) == [1] * 50
    database.close()
    with pytest.raises(ApiError, match="closing"):
        await database.write(count)
    with pytest.raises(ApiError, match="closing"):
        await database.read(count)
    with sqlite3.connect(tmp_path / "db.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM run_secrets").fetchone() == (50,)
    connection.close()


async def test_commits_are_synced(database: Database) -> None:
    settings = await database.write(
        lambda c: [
            c.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "secure_delete")
        ]
    )
    assert settings == ["wal", 2, 1]


def described(connection: Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%'").fetchall()
    return {str(row[0]): " ".join((row[1] or "").split()) for row in rows}


def test_the_migrations_lead_to_the_schema() -> None:
    made, migrated = sa.create_engine("sqlite://"), sa.create_engine("sqlite://")
    with made.begin() as connection:
        schema.metadata.create_all(connection)
        expected = described(connection)
    with migrated.begin() as connection:
        migrations.upgrade(connection)
        assert described(connection) == expected
        assert migrations.current(connection) == migrations.HEAD
    made.dispose()
    migrated.dispose()


def test_head_is_the_newest_migration() -> None:
    found = sorted(path.stem for path in pathlib.Path(migrations.__file__).parent.glob("versions/[0-9]*.py"))
    assert found[-1].split("_")[0] == migrations.HEAD
    assert [name.split("_")[0] for name in found] == [f"{n:04}" for n in range(1, len(found) + 1)]


def test_every_index_of_the_queue_is_used() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        for statement, index in ((runs.EXPIRED, "runs_leased"), (runs.WAITING, "runs_waiting")):
            text = str(statement.compile(engine, compile_kwargs={"render_postcompile": True}))
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", (1,) * text.count("?")).fetchall()
            assert index in str(plan), plan
    engine.dispose()
