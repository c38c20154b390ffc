"""`/api/storages`: how a user stores and fetches versions."""

from __future__ import annotations

import re
from typing import cast

from sqlalchemy.engine import Connection

from vm0.contracts import names
from vm0.contracts.storages import (
    CommitAnswer,
    CommitRequest,
    PrepareAnswer,
    PrepareRequest,
    StorageType,
    VersionView,
)
from vm0.server import versions
from vm0.server.db import storages
from vm0.server.db.storages import Storage, Version
from vm0.server.errors import bad_request, not_found
from vm0.server.routing import MIB, Call, Caller, RouteSpec, contract_router, declare
from vm0.server.tokens import UserPrincipal

router = contract_router("storages")
USER = (Caller.USER,)


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/storages/prepare",
        callers=USER,
        body=PrepareRequest,
        answer=PrepareAnswer,
        max_body_bytes=64 * MIB,
    ),
)
async def prepare(call: Call[PrepareRequest]) -> PrepareAnswer:
    """Announce a version; the storage is made at the first."""
    return await versions.prepare(call.context, _user(call, call.body.run_id), call.body)


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/storages/commit",
        callers=USER,
        body=CommitRequest,
        answer=CommitAnswer,
        max_body_bytes=64 * MIB,
    ),
)
async def commit(call: Call[CommitRequest]) -> CommitAnswer:
    """Make an uploaded version visible and the newest of its storage."""
    return await versions.commit(call.context, _user(call, call.body.run_id), call.body)


@declare(
    router,
    RouteSpec(
        method="GET",
        path="/api/storages/{storageType}/{name}/versions/{version}",
        callers=USER,
        answer=VersionView,
    ),
)
async def show(call: Call[None]) -> VersionView:
    """One version, or the newest (`head`), with an address to fetch its archive from."""
    try:
        kind = StorageType(call.path("storageType"))
    except ValueError:
        raise bad_request("storageType", "must be one of " + ", ".join(item.value for item in StorageType)) from None
    name, wanted = call.path("name"), call.path("version")
    if wanted != "head" and not re.fullmatch(names.SHA256, wanted):
        raise bad_request("version", f"must be `head` or {names.SHA256_MEANS}")

    def find(connection: Connection) -> tuple[Storage, Version]:
        storage = storages.find(connection, call.user_id, kind, name)
        version_id = storage.head_version if storage is not None and wanted == "head" else wanted
        version = None
        if storage is not None and version_id is not None:
            version = storages.find_version(connection, storage.storage_id, version_id)
        if storage is None or version is None:
            raise not_found(f"version {wanted} of {kind.value} {name!r}")
        return storage, version

    storage, version = await call.context.database.read(find)
    archive = versions.keys_of(storage, version.version_id).archive
    return VersionView(
        storage_name=storage.name,
        storage_type=kind,
        version_id=version.version_id,
        size=version.size,
        file_count=version.file_count,
        archive_url=call.context.signer.sign("GET", archive) if version.file_count else None,
    )


def _user(call: Call[object], run_id: str | None) -> UserPrincipal:
    if run_id is not None:
        raise bad_request("runId", "belongs to the webhook route of the same name")
    return cast(UserPrincipal, call.principal)
