"""A new run: its mounts resolved to versions and its session found, in the transaction that queues it."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from sqlalchemy.engine import Connection, Row

from vm0.contracts import codec
from vm0.contracts.runs import RunRequest, RunStatus, RunView, StorageMount
from vm0.contracts.storages import StorageType
from vm0.server.context import Change
from vm0.server.db import checkpoints, runs, storages
from vm0.server.db.runs import SessionRef
from vm0.server.domain import mounts
from vm0.server.domain.mounts import MountPlan, ResolvedMount
from vm0.server.errors import bad_request
from vm0.server.notifier import queue_topic
from vm0.server.views import run_view


def submit(connection: Connection, user_id: str, request: RunRequest, now_ms: int) -> Change[RunView]:
    """Queue the run; raises ApiError with the field's path for what does not exist."""
    session = None
    if request.resume_run_id is not None:
        request, session = _resume(connection, user_id, request, request.resume_run_id)
    plan = MountPlan(mounts=_resolve_all(connection, user_id, request, now_ms))
    num = runs.insert(
        connection,
        run_id=str(uuid.uuid4()),
        user_id=user_id,
        request=request,
        mounts=plan,
        session=session,
        now_ms=now_ms,
    )
    view = run_view(runs.details(connection, num), (), None)
    return Change(view, (queue_topic(request.group),))


def _resume(
    connection: Connection, user_id: str, request: RunRequest, resumed_id: str
) -> tuple[RunRequest, SessionRef | None]:
    """The request with what it inherits, and the session to continue."""
    resumed, checkpoint = _resumable(connection, user_id, resumed_id)
    session = None
    if checkpoint.session_id is not None:
        session = SessionRef(session_id=checkpoint.session_id, history_hash=checkpoint.history_hash)
    elif mounts.needs_session(request.cli_agent_type):
        raise bad_request(
            "resumeRunId", f"run {resumed_id} has no session that {request.cli_agent_type.value} can continue"
        )
    before = codec.loads(MountPlan, resumed.mounts)
    artifact = mounts.artifact_to_resume(
        request.artifact,
        before.of(StorageType.ARTIFACT),
        checkpoint.artifact_name,
        checkpoint.artifact_version,
    )
    memory = mounts.memory_to_resume(request.memory, before.of(StorageType.MEMORY))
    mounts.check_paths((*request.storages, artifact, memory))
    return dataclasses.replace(request, artifact=artifact, memory=memory), session


def _resumable(connection: Connection, user_id: str, resumed_id: str) -> tuple[Row[Any], Row[Any]]:
    row = runs.load(connection, resumed_id)
    if row is None or row.user_id != user_id:
        raise bad_request("resumeRunId", f"there is no run {resumed_id}")
    if not row.state.status.terminal:
        raise bad_request("resumeRunId", f"run {resumed_id} is {RunStatus(row.state.status).value}, not finished")
    checkpoint = checkpoints.find(connection, row.num)
    if checkpoint is None:
        raise bad_request("resumeRunId", f"run {resumed_id} left no checkpoint")
    return runs.details(connection, row.num), checkpoint


def _resolve_all(connection: Connection, user_id: str, request: RunRequest, now_ms: int) -> tuple[ResolvedMount, ...]:
    found = [
        _resolve(connection, user_id, StorageType.VOLUME, mount, f"storages[{index}]")
        for index, mount in enumerate(request.storages)
    ]
    for kind, mount in ((StorageType.ARTIFACT, request.artifact), (StorageType.MEMORY, request.memory)):
        if mount is not None:
            if mount.version_id is None:
                storages.ensure(connection, user_id, kind, mount.name, now_ms)
            found.append(_resolve(connection, user_id, kind, mount, kind.value))
    return tuple(found)


def _resolve(connection: Connection, user_id: str, kind: StorageType, mount: StorageMount, path: str) -> ResolvedMount:
    storage = storages.find(connection, user_id, kind, mount.name)
    wanted = mount.version_id or (storage.head_version if storage is not None else None)
    if wanted is None:
        if kind is StorageType.VOLUME:
            raise bad_request(f"{path}.name", f"there is no {kind.value} {mount.name!r} with a version")
        return ResolvedMount(storage_type=kind, name=mount.name, mount_path=mount.mount_path)
    version = storages.find_version(connection, storage.storage_id, wanted) if storage is not None else None
    if version is None:
        raise bad_request(f"{path}.versionId", f"{kind.value} {mount.name!r} has no version {wanted}")
    return ResolvedMount(
        storage_type=kind,
        name=mount.name,
        mount_path=mount.mount_path,
        version_id=version.version_id,
        has_archive=version.file_count > 0,
    )
