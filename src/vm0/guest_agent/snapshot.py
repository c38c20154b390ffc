"""Stores a folder as the next version of its storage: scan, prepare, upload what is not there yet, commit.

The version id is a hash of the content, so a folder that did not change is never packed or uploaded again.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile

from vm0.archive.entries import Entry
from vm0.archive.errors import ArchiveError, ArchiveReason
from vm0.archive.pack import pack
from vm0.archive.scan import Scan, scan
from vm0.contracts import codec, storages
from vm0.guest_common.clock import rfc3339_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from vm0.guest_common.environment import Mount
    from vm0.guest_common.http import ApiClient
    from vm0.guest_common.log import Log
    from vm0.guest_common.operations import Operations

    T = TypeVar("T")

DRIVER = "vas"
PREPARE_PATH = "/api/webhooks/agent/storages/prepare"
COMMIT_PATH = "/api/webhooks/agent/storages/commit"
SCAN_ATTEMPTS = 3  # a process that the agent left behind may still write
MAX_SKIPPED_LOGGED = 20


class SnapshotError(Exception):
    """a folder cannot be stored"""


def decoded(cls: type[T], answer: bytes | None, what: str) -> T:
    """The answer as `cls`; raises SnapshotError, because an API that answers nonsense is no retry's business."""
    try:
        return codec.loads(cls, answer or b"null")
    except codec.ContractError as exc:
        raise SnapshotError(f"{what}: the answer is malformed: {exc}") from None


class SnapshotMaker:
    """Makes the snapshots of one run."""

    def __init__(self, client: ApiClient, run_id: str, runtime_dir: str, log: Log, operations: Operations) -> None:
        self._client, self._run_id, self._runtime_dir = client, run_id, runtime_dir
        self._log, self._operations = log, operations

    def make(self, mount: Mount, storage_type: storages.StorageType) -> str:
        """The version id of the folder as it is now. Raises SnapshotError, ApiError, OSError."""
        if mount.driver != DRIVER:
            raise SnapshotError(f"{storage_type.value} driver {mount.driver!r} is not supported; expected {DRIVER!r}")
        for attempt in range(1, SCAN_ATTEMPTS + 1):
            try:
                return self._make_once(mount, storage_type)
            except ArchiveError as exc:
                if exc.reason is not ArchiveReason.CHANGED or attempt == SCAN_ATTEMPTS:
                    raise SnapshotError(f"{exc}" + (f" ({exc.hint})" if exc.hint else "")) from None
                self._log.warn(f"{mount.mount_path}: {exc}; starting again")
        raise AssertionError("unreachable")

    def _make_once(self, mount: Mount, storage_type: storages.StorageType) -> str:
        with self._operations.timed(f"{storage_type.value}_hash_compute"):
            found = scan(mount.mount_path)
        self._report_skipped(mount, found)
        files = tuple(storages.FileEntry(path=e.path, hash=e.hash, size=e.size) for e in found.entries)
        with self._operations.timed(f"{storage_type.value}_prepare_api"):
            answer = self._prepare(mount, storage_type, files)
        if not answer.existing:
            self._upload(mount, storage_type, found.entries, files, answer)
        with self._operations.timed(f"{storage_type.value}_commit_api"):
            self._commit(mount, storage_type, files, answer)
        what = "unchanged" if answer.existing else "stored"
        self._log.info(f"{storage_type.value} {mount.name}: {what}, {len(files)} files, {answer.version_id[:12]}")
        return answer.version_id

    def _report_skipped(self, mount: Mount, found: Scan) -> None:
        for item in found.skipped[:MAX_SKIPPED_LOGGED]:
            self._log.warn(f"not stored: {mount.mount_path}/{item.name}: {item.reason}")
        more = len(found.skipped) - MAX_SKIPPED_LOGGED
        if more > 0:
            self._log.warn(f"not stored: {more} more below {mount.mount_path}")

    def _prepare(
        self, mount: Mount, storage_type: storages.StorageType, files: tuple[storages.FileEntry, ...]
    ) -> storages.PrepareAnswer:
        request = storages.PrepareRequest(
            storage_name=mount.name, storage_type=storage_type, files=files, run_id=self._run_id
        )
        answer = self._client.post_json(PREPARE_PATH, codec.dumps(request))
        return decoded(storages.PrepareAnswer, answer, "prepare")

    def _upload(
        self,
        mount: Mount,
        storage_type: storages.StorageType,
        entries: tuple[Entry, ...],
        files: tuple[storages.FileEntry, ...],
        answer: storages.PrepareAnswer,
    ) -> None:
        if answer.uploads is None:
            raise SnapshotError("prepare: the content is new, but the answer says not where to upload it")
        if files:
            with tempfile.TemporaryFile(dir=self._runtime_dir) as archive:
                with self._operations.timed(f"{storage_type.value}_archive_create"):
                    size = pack(mount.mount_path, entries, archive)
                with self._operations.timed(f"{storage_type.value}_s3_upload"):
                    self._client.put_file(answer.uploads.archive.presigned_url, archive, size, "application/gzip")
        manifest = {"version": 1, "files": codec.encode(files), "createdAt": rfc3339_ms()}
        data = json.dumps(manifest, indent=2).encode()
        self._client.put_file(answer.uploads.manifest.presigned_url, io.BytesIO(data), len(data), "application/json")

    def _commit(
        self,
        mount: Mount,
        storage_type: storages.StorageType,
        files: tuple[storages.FileEntry, ...],
        prepared: storages.PrepareAnswer,
    ) -> None:
        request = storages.CommitRequest(
            storage_name=mount.name,
            storage_type=storage_type,
            version_id=prepared.version_id,
            files=files,
            run_id=self._run_id,
            message=None if prepared.existing else f"Checkpoint from run {self._run_id}",
        )
        answer = decoded(storages.CommitAnswer, self._client.post_json(COMMIT_PATH, codec.dumps(request)), "commit")
        if not answer.success:
            raise SnapshotError("commit: the API says that it was not successful")


def file_digest(path: str) -> tuple[str, int]:
    """SHA-256 and size of a file, in bounded memory. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while block := file.read(1024 * 1024):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
