"""What to fetch and in which order. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence

from vm0.contracts.manifest import ManifestEntry, StorageManifest


class ItemKind(enum.Enum):
    STORAGE = "storage"
    ARTIFACT = "artifact"
    MEMORY = "memory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One folder to fill; without a URL it only has to exist."""

    kind: ItemKind
    mount_path: str
    url: str | None

    @property
    def operation(self) -> str:
        """The name of its timing record."""
        return "storage_download" if self.kind is ItemKind.STORAGE else "artifact_download"

    @property
    def may_be_missing(self) -> bool:
        """The first run of an artifact or a memory has nothing stored yet; a storage must be there."""
        return self.kind is not ItemKind.STORAGE


def plan_items(manifest: StorageManifest) -> list[Item]:
    """Parents before children, else in the manifest's order: what is mounted deeper goes on top."""
    items = [_item(ItemKind.STORAGE, entry) for entry in manifest.storages]
    if manifest.artifact is not None:
        items.append(_item(ItemKind.ARTIFACT, manifest.artifact))
    if manifest.memory is not None:
        items.append(_item(ItemKind.MEMORY, manifest.memory))
    return sorted(items, key=lambda item: item.mount_path.count("/"))


def overlap(one: Item, other: Item) -> bool:
    """Whether one's folder is the other's, or inside it."""
    a, b = one.mount_path + "/", other.mount_path + "/"
    return a.startswith(b) or b.startswith(a)


def next_ready(pending: Sequence[Item], running: Iterable[Item]) -> Item | None:
    """The first item that overlaps neither a running one nor one that comes before it."""
    blocking = list(running)
    for item in pending:
        if not any(overlap(item, other) for other in blocking):
            return item
        blocking.append(item)
    return None


def shown_url(url: str) -> str:
    """Host and path: the query is a signature, and whoever has it can read the object."""
    origin, slashes, rest = url.partition("#")[0].partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return origin + slashes + host.rpartition("@")[2] + slash + path


def _item(kind: ItemKind, entry: ManifestEntry) -> Item:
    url = entry.archive_url
    return Item(kind=kind, mount_path=entry.mount_path, url=None if url in (None, "", "null") else url)
