"""Versions of storages: prepare (announce), upload, commit (make visible). For users and for runs alike.

A run may only write the artifact and the memory it mounts, and only while it holds its lease.
"""

from __future__ import annotations

import dataclasses

from sqlalchemy.engine import Connection

from vm0.contracts import codec
from vm0.contracts.errors import ErrorCode
from vm0.contracts.storages import (
    CommitAnswer,
    CommitRequest,
    FileEntry,
    PrepareAnswer,
    PrepareRequest,
    StorageType,
    Upload,
    Uploads,
    version_id,
)
from vm0.server import queue
from vm0.server.context import ServerContext
from vm0.server.db import runs, storages
from vm0.server.db.storages import Storage, Version
from vm0.server.domain.mounts import MountPlan
from vm0.server.errors import ApiError, bad_request
from vm0.server.objects import upload_key, version_key
from vm0.server.tokens import SandboxPrincipal, UserPrincipal

ARCHIVE, MANIFEST = "archive.tar.gz", "manifest.json"
Writer = UserPrincipal | SandboxPrincipal


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectKeys:
    """The two objects of a version, where they end up."""

    archive: str
    manifest: str


def keys_of(storage: Storage, version: str) -> ObjectKeys:
    def key(file: str) -> str:
        return version_key(storage.user_id, storage.storage_type, storage.name, version, file)

    return ObjectKeys(key(ARCHIVE), key(MANIFEST))


async def prepare(context: ServerContext, writer: Writer, request: PrepareRequest) -> PrepareAnswer:
    """Tell which version the files make, and where to upload it unless it is stored."""
    now_ms = context.clock.now_ms()

    def open_storage(connection: Connection) -> Storage:
        _authorize(connection, writer, request.storage_type, request.storage_name)
        return storages.ensure(connection, writer.user_id, request.storage_type, request.storage_name, now_ms)

    archive_limit, manifest_limit = upload_limits(request.files)
    if archive_limit > context.config.max_object_bytes:
        limit = context.config.max_object_bytes
        raise ApiError(ErrorCode.PAYLOAD_TOO_LARGE, f"files: more than {limit} bytes in all")
    storage = await context.database.write(open_storage)
    version = await context.in_thread(version_id, storage.storage_id, request.files)
    keys = keys_of(storage, version)
    found = await context.database.read(lambda c: storages.find_version(c, storage.storage_id, version))
    if found is not None and await context.in_thread(_stored, context, keys, found.file_count):
        return PrepareAnswer(version_id=version, existing=True)

    def upload(key: str, limit: int) -> Upload:
        return Upload(key=key, presigned_url=context.signer.sign("PUT", upload_key(key), limit))

    uploads = Uploads(archive=upload(keys.archive, archive_limit), manifest=upload(keys.manifest, manifest_limit))
    return PrepareAnswer(version_id=version, existing=False, uploads=uploads)


async def commit(context: ServerContext, writer: Writer, request: CommitRequest) -> CommitAnswer:
    """Publish an uploaded version and make it the head; idempotent."""

    def find(connection: Connection) -> tuple[Storage | None, Version | None]:
        _authorize(connection, writer, request.storage_type, request.storage_name)
        storage = storages.find(connection, writer.user_id, request.storage_type, request.storage_name)
        known = None if storage is None else storages.find_version(connection, storage.storage_id, request.version_id)
        return storage, known

    storage, known = await context.database.read(find)
    if storage is None:
        raise bad_request("storageName", f"{request.storage_type.value} {request.storage_name!r} was not prepared")
    made = await context.in_thread(version_id, storage.storage_id, request.files)
    if made != request.version_id:
        raise bad_request("versionId", f"these files make version {made}")
    keys = keys_of(storage, made)
    if not await context.in_thread(_publish, context, keys, len(request.files)):
        if known is not None:
            raise ApiError(
                ErrorCode.S3_FILES_MISSING, f"the files of version {made} are gone; prepare and upload again"
            )
        raise bad_request("versionId", f"version {made} was not uploaded")
    version = Version(made, sum(file.size for file in request.files), len(request.files))
    run_id = writer.run_id if isinstance(writer, SandboxPrincipal) else None
    now_ms = context.clock.now_ms()

    def store(connection: Connection) -> bool:
        _authorize(connection, writer, request.storage_type, request.storage_name)
        return storages.add_version(
            connection, storage.storage_id, version, message=request.message, run_id=run_id, now_ms=now_ms
        )

    new = await context.database.write(store)
    return CommitAnswer(
        success=True,
        version_id=made,
        storage_name=request.storage_name,
        size=version.size,
        file_count=version.file_count,
        deduplicated=not new,
    )


def upload_limits(files: tuple[FileEntry, ...]) -> tuple[int, int]:
    """The most an archive and a manifest of these files can take: content, headers, and what gzip may add."""
    names = sum(len(file.path.encode()) for file in files)
    content = sum(file.size for file in files) + 4096 * len(files) + 2 * names
    archive = content + content // 100 + 1024 * 1024
    manifest = 512 * len(files) + 6 * names + 1024 * 1024
    return archive, manifest


def _authorize(connection: Connection, writer: Writer, storage_type: StorageType, name: str) -> None:
    if isinstance(writer, UserPrincipal):
        return
    row = queue.fenced(connection, writer.run_id, writer.user_id, writer.epoch)
    plan = codec.loads(MountPlan, runs.details(connection, row.num).mounts)
    mount = None if storage_type is StorageType.VOLUME else plan.of(storage_type)
    if mount is None or mount.name != name:
        raise ApiError(ErrorCode.FORBIDDEN, f"run {writer.run_id} does not write {storage_type.value} {name!r}")


def _stored(context: ServerContext, keys: ObjectKeys, file_count: int) -> bool:
    return context.objects.exists(keys.manifest) and (file_count == 0 or context.objects.exists(keys.archive))


def _publish(context: ServerContext, keys: ObjectKeys, file_count: int) -> bool:
    """Move what was uploaded to its place; False if a needed object is neither there nor was uploaded."""
    for key in (keys.archive, keys.manifest):
        if not context.objects.exists(key):
            context.objects.publish(upload_key(key), key)
    return _stored(context, keys, file_count)
