"""Storages, artifacts and memories: content-addressed versions, made by prepare -> upload -> commit.

A version id is the SHA-256 of the storage id and the sorted `path:hash` lines (`version_id`), so the same content
has the same version, whoever uploads it, and an unchanged folder is never uploaded twice.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterable

from vm0.contracts import names
from vm0.contracts.codec import ContractError, limited


class StorageType(enum.Enum):
    VOLUME = "volume"  # input only, never changed by a run
    ARTIFACT = "artifact"  # the folder a run works on; a checkpoint makes its next version
    MEMORY = "memory"  # what an agent keeps between runs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One regular file or symbolic link of a version. Of a link, `hash` and `size` are those of its target text."""

    path: str = limited(min_length=1, max_bytes=4096)  # relative, `/` between parts
    hash: str = limited(pattern=names.SHA256, pattern_means=names.SHA256_MEANS)
    size: int = limited(minimum=0, maximum=names.MAX_FILE_BYTES)

    def __post_init__(self) -> None:
        if any(part in ("", ".", "..") for part in self.path.split("/")):
            raise ContractError("path", "must be relative, without empty, `.` or `..` components")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest:
    """Announce a version. `run_id` is required on the webhook route and absent on the user's."""

    storage_name: str = limited(pattern=names.STORAGE_NAME, pattern_means=names.STORAGE_NAME_MEANS)
    storage_type: StorageType
    files: tuple[FileEntry, ...] = limited(max_length=names.MAX_FILES)
    run_id: str | None = limited(None, pattern=names.UUID, pattern_means=names.UUID_MEANS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Where to PUT one object. `presigned_url` is absolute, or starts with `/` and is relative to the API."""

    key: str
    presigned_url: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """The two objects of a version: a gzipped tar and a manifest."""

    archive: Upload
    manifest: Upload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareAnswer:
    """`existing`: the content is stored already, commit without uploading; otherwise `uploads` says where to."""

    version_id: str
    existing: bool
    uploads: Uploads | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """Make a prepared and uploaded version visible and the head of its storage. Idempotent."""

    storage_name: str = limited(pattern=names.STORAGE_NAME, pattern_means=names.STORAGE_NAME_MEANS)
    storage_type: StorageType
    version_id: str = limited(pattern=names.SHA256, pattern_means=names.SHA256_MEANS)
    files: tuple[FileEntry, ...] = limited(max_length=names.MAX_FILES)
    run_id: str | None = limited(None, pattern=names.UUID, pattern_means=names.UUID_MEANS)
    message: str | None = limited(None, max_bytes=4096)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommitAnswer:
    """What is stored now."""

    success: bool
    version_id: str
    storage_name: str
    size: int
    file_count: int
    deduplicated: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """One stored version. `archive_url` is None for a version without files."""

    storage_name: str
    storage_type: StorageType
    version_id: str
    size: int
    file_count: int
    archive_url: str | None = None


def version_id(storage_id: str, files: Iterable[FileEntry]) -> str:
    """The content hash of a version: SHA-256 of `storage:<id>`, newline, and the sorted `path:hash` lines.

    Sorted by UTF-16 code units, as the reference server does; that differs from code points only above U+FFFF.
    """
    lines = sorted((f"{file.path}:{file.hash}" for file in files), key=lambda line: line.encode("utf-16-be"))
    return hashlib.sha256(f"storage:{storage_id}\n{chr(10).join(lines)}".encode()).hexdigest()
