"""What a run's folders are filled with. A module of its own, because `guest_download` needs only this: making the
classes of all contracts takes longer than its whole start should.
"""

from __future__ import annotations

import dataclasses

from vm0.contracts import names
from vm0.contracts.codec import limited


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """A version to fill `mount_path` with; no URL: an empty folder."""

    mount_path: str = limited(pattern=names.ABSOLUTE_PATH, pattern_means=names.ABSOLUTE_PATH_MEANS, max_bytes=4096)
    archive_url: str | None = None
    vas_storage_name: str | None = None
    vas_version_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StorageManifest:
    """Everything `guest_download` has to fetch."""

    storages: tuple[ManifestEntry, ...] = ()
    artifact: ManifestEntry | None = None
    memory: ManifestEntry | None = None
