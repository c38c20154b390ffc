"""Versions of the schema, applied by `upgrade`; `HEAD` is the newest (a test checks that)."""

from __future__ import annotations

import pathlib

from sqlalchemy.engine import Connection

HEAD = "0001"


def current(connection: Connection) -> str | None:
    """The version a database has; None: an empty one."""
    names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
    if not names:
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def upgrade(connection: Connection, target: str = "head") -> None:
    """Apply what is missing, within the caller's transaction: a failed migration leaves nothing behind."""
    from alembic import command  # 0.2 s to import, and nearly every start finds the newest version already there
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, target)
