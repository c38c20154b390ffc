"""What a later run can resume: the CLI's session with its history, and the folders as they are at the end.

A result must not be lost because of its history: if that is missing or too large, the checkpoint is made without the
session, and the log says so. Folders that cannot be stored fail the checkpoint.
"""

from __future__ import annotations

import os

from vm0.contracts import codec, names, storages, webhooks
from vm0.guest_agent.snapshot import SnapshotError, SnapshotMaker, decoded, file_digest
from vm0.guest_common.http import ApiClient, ApiError, LeaseLostError
from vm0.guest_common.log import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_common.environment import Environment
    from vm0.guest_common.log import Log
    from vm0.guest_common.operations import Operations

PREPARE_HISTORY_PATH = "/api/webhooks/agent/checkpoints/prepare-history"
CHECKPOINT_PATH = "/api/webhooks/agent/checkpoints"


class CheckpointError(Exception):
    """the checkpoint is not stored"""


class Session:
    """The CLI's session, if it had one, and the places where its history may be."""

    __slots__ = ("history_paths", "session_id")

    def __init__(self, session_id: str = "", history_paths: list[str] | None = None) -> None:
        self.session_id = session_id
        self.history_paths = history_paths or []


class CheckpointMaker:
    """Makes the checkpoint of one run; may be repeated."""

    def __init__(self, client: ApiClient, environment: Environment, log: Log, operations: Operations) -> None:
        self._client, self._environment = client, environment
        self._log, self._operations = log, operations
        self._snapshots = SnapshotMaker(client, environment.run_id, environment.runtime_dir, log, operations)

    def make(self, session: Session) -> str:
        """The checkpoint's id. Raises CheckpointError."""
        try:
            with self._operations.timed("checkpoint_total"):
                return self._make(session)
        except (ApiError, SnapshotError, codec.ContractError) as exc:
            raise CheckpointError(describe(exc)) from None
        except OSError as exc:
            where = f"{exc.filename}: " if exc.filename else ""
            raise CheckpointError(f"{where}{exc.strerror or describe(exc)}") from None

    def _make(self, session: Session) -> str:
        environment = self._environment
        history_hash = self._store_history(session)
        artifact = memory = None
        if environment.artifact is not None and environment.artifact.driver and environment.artifact.name:
            version = self._snapshots.make(environment.artifact, storages.StorageType.ARTIFACT)
            artifact = webhooks.ArtifactSnapshot(artifact_name=environment.artifact.name, artifact_version=version)
        if environment.memory is not None and environment.memory.driver and environment.memory.name:
            version = self._snapshots.make(environment.memory, storages.StorageType.MEMORY)
            memory = webhooks.MemorySnapshot(memory_name=environment.memory.name, memory_version=version)
        request = webhooks.CheckpointRequest(
            run_id=environment.run_id,
            cli_agent_type=environment.cli_agent_type,
            cli_agent_session_id=session.session_id if history_hash else None,
            cli_agent_session_history_hash=history_hash,
            artifact_snapshot=artifact,
            memory_snapshot=memory,
        )
        with self._operations.timed("checkpoint_api_call"):
            answer = self._client.post_json(CHECKPOINT_PATH, codec.dumps(request))
        return decoded(webhooks.CheckpointAnswer, answer, "checkpoint").checkpoint_id

    def _store_history(self, session: Session) -> str | None:
        """Its hash, None if there is no history to resume from."""
        if not session.session_id:
            return None
        path = next((path for path in session.history_paths if os.path.isfile(path)), None)
        if path is None:
            self._log.warn("the session's history is missing; the checkpoint cannot be used to resume the session")
            return None
        try:
            with self._operations.timed("session_history_read"):
                digest, size = file_digest(path)
            if not 0 < size <= names.MAX_HISTORY_BYTES:
                self._log.warn(f"the session's history has {size} bytes; the checkpoint is made without it")
                return None
            self._upload_history(path, digest, size)
        except LeaseLostError:
            raise
        except (ApiError, SnapshotError, OSError) as exc:
            self._log.warn(f"the session's history cannot be stored; the checkpoint is made without it: {exc}")
            return None
        return digest

    def _upload_history(self, path: str, digest: str, size: int) -> None:
        request = webhooks.PrepareHistoryRequest(run_id=self._environment.run_id, hash=digest, size=size)
        answer = decoded(
            webhooks.PrepareHistoryAnswer,
            self._client.post_json(PREPARE_HISTORY_PATH, codec.dumps(request)),
            "prepare-history",
        )
        if answer.existing:
            return
        if answer.presigned_url is None:
            raise SnapshotError("prepare-history: the answer says not where to upload it")
        with open(path, "rb") as file:
            self._client.put_file(answer.presigned_url, file, size, "application/octet-stream")
