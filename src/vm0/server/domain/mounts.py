"""What a run's mounts resolve to at submit: concrete version ids, so that a later upload changes no queued run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vm0.contracts.codec import ContractError
from vm0.contracts.runs import AgentKind, StorageMount
from vm0.contracts.storages import StorageType


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMount:
    """A mount with its version; None: the storage has none yet, the mount is an empty folder."""

    storage_type: StorageType
    name: str
    mount_path: str
    version_id: str | None = None
    has_archive: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """All mounts of a run."""

    mounts: tuple[ResolvedMount, ...] = ()

    def of(self, storage_type: StorageType) -> ResolvedMount | None:
        """The artifact or the memory (there is at most one of each)."""
        return next((mount for mount in self.mounts if mount.storage_type is storage_type), None)


def check_paths(mounts: Iterable[StorageMount | None]) -> None:
    """Raises ContractError if two mounts have one path: an inherited mount can collide with a requested one."""
    paths = [mount.mount_path for mount in mounts if mount is not None]
    if len(set(paths)) != len(paths):
        raise ContractError("storages", "a mount has the mountPath of a mount inherited from resumeRunId")


def needs_session(kind: AgentKind) -> bool:
    """A command has no session; resuming it only means to go on with its artifact."""
    return kind is not AgentKind.COMMAND


def artifact_to_resume(
    requested: StorageMount | None, previous: ResolvedMount | None, name: str | None, version: str | None
) -> StorageMount | None:
    """The artifact of a resumed run: what is asked for wins, else the old mount at the checkpoint's version."""
    if requested is None:
        if previous is None:
            return None
        same = name == previous.name
        return StorageMount(
            name=previous.name,
            mount_path=previous.mount_path,
            version_id=version if same else previous.version_id,
        )
    if requested.version_id is None and requested.name == name:
        return dataclasses.replace(requested, version_id=version)
    return requested


def memory_to_resume(requested: StorageMount | None, previous: ResolvedMount | None) -> StorageMount | None:
    """Memory is what an agent keeps between runs: the old mount, at the newest version."""
    if requested is not None or previous is None:
        return requested
    return StorageMount(name=previous.name, mount_path=previous.mount_path)
