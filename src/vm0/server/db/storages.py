"""Storages and their versions. A storage belongs to a user; type and name are its address."""

from __future__ import annotations

import dataclasses
import uuid

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from vm0.contracts.storages import StorageType
from vm0.server.db.schema import storage_versions, storages


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    storage_id: str
    user_id: str
    storage_type: StorageType
    name: str
    head_version: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    version_id: str
    size: int
    file_count: int


def find(connection: Connection, user_id: str, storage_type: StorageType, name: str) -> Storage | None:
    row = connection.execute(
        sa.select(storages).where(
            storages.c.user_id == user_id,
            storages.c.storage_type == storage_type.value,
            storages.c.name == name,
        )
    ).one_or_none()
    if row is None:
        return None
    return Storage(row.storage_id, row.user_id, storage_type, row.name, row.head_version)


def ensure(connection: Connection, user_id: str, storage_type: StorageType, name: str, now_ms: int) -> Storage:
    """The storage, made empty if it is new."""
    connection.execute(
        sqlite_insert(storages)
        .values(
            storage_id=str(uuid.uuid4()),
            user_id=user_id,
            storage_type=storage_type.value,
            name=name,
            created_at_ms=now_ms,
        )
        .on_conflict_do_nothing()
    )
    found = find(connection, user_id, storage_type, name)
    if found is None:
        raise RuntimeError(f"storage {storage_type.value} {name!r} is not there right after it was made")
    return found


def find_version(connection: Connection, storage_id: str, version_id: str) -> Version | None:
    row = connection.execute(
        sa.select(storage_versions).where(
            storage_versions.c.storage_id == storage_id, storage_versions.c.version_id == version_id
        )
    ).one_or_none()
    return None if row is None else Version(row.version_id, row.size, row.file_count)


def add_version(
    connection: Connection,
    storage_id: str,
    version: Version,
    *,
    message: str | None,
    run_id: str | None,
    now_ms: int,
) -> bool:
    """Store the version if it is new and make it the head; returns whether it was new."""
    added = connection.execute(
        sqlite_insert(storage_versions)
        .values(
            storage_id=storage_id,
            version_id=version.version_id,
            size=version.size,
            file_count=version.file_count,
            message=message,
            run_id=run_id,
            created_at_ms=now_ms,
        )
        .on_conflict_do_nothing()
    )
    connection.execute(
        sa.update(storages).where(storages.c.storage_id == storage_id).values(head_version=version.version_id)
    )
    return added.rowcount == 1
