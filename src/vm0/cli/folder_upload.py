"""A local folder as a version of a storage: scan, ask the server what it has, upload what it has not, commit."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence

from vm0.archive.entries import Cause, Entry, Skipped
from vm0.archive.errors import ArchiveError
from vm0.archive.pack import pack
from vm0.archive.scan import Scan, scan
from vm0.cli.api import ApiClient
from vm0.cli.errors import CliError
from vm0.cli.run_options import storage_name
from vm0.contracts.storages import CommitRequest, FileEntry, PrepareRequest, StorageType

SHOWN_PATHS = 10  # of a list in an error or a warning
MANIFEST_VERSION = 1

# What the folder has and a version cannot hold: said, and left out. Everything else that was left out is an error,
# because the agent would silently work without it.
LEFT_OUT = {Cause.SPECIAL, Cause.NAME}


@dataclasses.dataclass(frozen=True, slots=True)
class Uploaded:
    """A folder that the server has now."""

    folder: pathlib.Path
    name: str
    version_id: str
    entries: tuple[Entry, ...]
    reused: bool  # the server had this content already


async def upload(client: ApiClient, folder: pathlib.Path, kind: StorageType, say: Callable[[str], None]) -> Uploaded:
    """Store `folder` as the newest version of its storage; what had to be left out is told through `say`."""
    found = await asyncio.to_thread(scanned, folder)
    for line in warnings(folder, found.skipped):
        say(line)
    files = tuple(FileEntry(path=entry.path, hash=entry.hash, size=entry.size) for entry in found.entries)
    name = storage_name(folder)
    prepared = await client.prepare(PrepareRequest(storage_name=name, storage_type=kind, files=files))
    if not prepared.existing:
        if prepared.uploads is None:
            raise CliError(f"the server did not say where to upload {folder}", hint="does its version fit this client?")
        with tempfile.TemporaryDirectory(prefix="vm0-upload-") as scratch:
            manifest = pathlib.Path(scratch, "manifest.json")
            await asyncio.to_thread(manifest.write_bytes, _manifest(files))
            if files:
                archive = pathlib.Path(scratch, "archive.tar.gz")
                await asyncio.to_thread(_packed, folder, found.entries, archive)
                await client.put_object(prepared.uploads.archive, archive, "application/gzip")
            await client.put_object(prepared.uploads.manifest, manifest, "application/json")
    answer = await client.commit(
        CommitRequest(storage_name=name, storage_type=kind, version_id=prepared.version_id, files=files)
    )
    return Uploaded(folder, name, answer.version_id, found.entries, prepared.existing)


def scanned(folder: pathlib.Path) -> Scan:
    """The folder's content; raises CliError for a folder that cannot be stored as a whole."""
    try:
        found = scan(folder)
    except FileNotFoundError:
        raise CliError(f"there is no folder {folder}", hint="check the path given to --artifact or --storage") from None
    except NotADirectoryError:
        raise CliError(f"{folder} is not a folder", hint="give the folder that holds the file") from None
    except ArchiveError as exc:
        raise CliError(f"{folder}: {exc}", hint=exc.hint) from exc
    refused = [item for item in found.skipped if item.cause not in LEFT_OUT]
    if refused:
        raise CliError(
            f"{folder} cannot be stored:\n{_listed(refused)}",
            hint="make these files readable, move them out of the folder, or make them smaller",
        )
    return found


def warnings(folder: pathlib.Path, skipped: Sequence[Skipped]) -> list[str]:
    left_out = [item for item in skipped if item.cause in LEFT_OUT]
    return [f"not stored of {folder}:\n{_listed(left_out)}"] if left_out else []


def _listed(items: Sequence[Skipped]) -> str:
    lines = [f"  {item.name}: {item.reason}" for item in items[:SHOWN_PATHS]]
    if len(items) > SHOWN_PATHS:
        lines.append(f"  and {len(items) - SHOWN_PATHS} more")
    return "\n".join(lines)


def _packed(folder: pathlib.Path, entries: Iterable[Entry], target: pathlib.Path) -> None:
    with target.open("xb") as file:
        pack(folder, entries, file)


def _manifest(files: Sequence[FileEntry]) -> bytes:
    return json.dumps(
        {
            "version": MANIFEST_VERSION,
            "files": [{"path": file.path, "hash": file.hash, "size": file.size} for file in files],
            "createdAt": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        },
        indent=2,
    ).encode()


def same_folder(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two paths are one folder, whatever links lead there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
