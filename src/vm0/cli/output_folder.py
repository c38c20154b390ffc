"""`--output DIR`: write a checkpoint's folder to the local disk.

An existing folder keeps what the checkpoint does not have, with one exception: when DIR is the folder the run started
from, files that were uploaded and that the run deleted are deleted here too, unless they changed meanwhile.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import tempfile

from vm0.archive.entries import Cause
from vm0.archive.errors import ArchiveError
from vm0.archive.extract import Report, extract, member_path
from vm0.archive.members import Gunzip, Limits, TarReader
from vm0.archive.scan import scan
from vm0.cli.api import ApiClient
from vm0.cli.errors import CliError
from vm0.cli.folder_upload import Uploaded, same_folder
from vm0.contracts.runs import CheckpointView
from vm0.contracts.storages import StorageType


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """What was done to the folder; `kept` counts uploaded files the run deleted but that changed here meanwhile."""

    folder: pathlib.Path
    files: int
    removed: int
    kept: int
    refused: tuple[str, ...]  # members of the archive that were not written, and why


async def write_output(
    client: ApiClient, checkpoint: CheckpointView, folder: pathlib.Path, source: Uploaded | None
) -> Written:
    """Write the artifact of `checkpoint` to `folder`, which is made if it does not exist."""
    if checkpoint.artifact_name is None or checkpoint.artifact_version is None:
        raise CliError(
            "the run has no artifact to write to --output",
            hint="give the run a folder with --artifact, or leave --output out",
        )
    version = await client.version(StorageType.ARTIFACT, checkpoint.artifact_name, checkpoint.artifact_version)
    with tempfile.TemporaryDirectory(prefix="vm0-output-") as scratch:
        archive: pathlib.Path | None = None
        if version.archive_url is not None:
            archive = pathlib.Path(scratch, "archive.tar.gz")
            await client.get_object(version.archive_url, archive)
        return await asyncio.to_thread(_write, archive, folder, source)


def check_target(folder: pathlib.Path) -> None:
    """Refuse a hopeless --output before the run instead of after it."""
    if folder.exists() and not folder.is_dir():
        raise CliError(f"--output {folder} exists and is not a folder", hint="choose another path")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise CliError(f"--output {folder}: there is no folder {parent}", hint="make it first, or choose another path")


def _write(archive: pathlib.Path | None, folder: pathlib.Path, source: Uploaded | None) -> Written:
    folder.mkdir(exist_ok=True)
    report, present = Report(), set[str]()
    try:
        if archive is not None:
            with archive.open("rb") as stream:
                report = extract(stream, folder)
            present = _members(archive)
    except ArchiveError as exc:
        raise CliError(f"the checkpoint's archive cannot be unpacked into {folder}: {exc}", hint=exc.hint) from exc
    conflicts = [f"  {item.name}: {item.reason}" for item in report.skipped if item.cause is Cause.CONFLICT]
    if conflicts:
        raise CliError(
            f"not everything could be written to {folder}:\n" + "\n".join(conflicts),
            hint="move these out of the way; `vm0 run --resume RUN --output DIR true` writes the folder again",
        )
    removed = kept = 0
    if source is not None and same_folder(source.folder, folder):
        removed, kept = _remove_deleted(folder, source, present)
    refused = tuple(f"{item.name}: {item.reason}" for item in report.skipped)
    return Written(folder, report.files + report.links, removed, kept, refused)


def _members(archive: pathlib.Path) -> set[str]:
    with archive.open("rb") as stream:
        reader = TarReader(Gunzip(stream, Limits()))
        found = set()
        while (member := reader.next_member()) is not None:
            path = member_path(member)
            if path is not None:
                found.add(path)
        return found


def _remove_deleted(folder: pathlib.Path, source: Uploaded, present: set[str]) -> tuple[int, int]:
    """Delete what was uploaded and is not in the new version; only what still is what was uploaded."""
    gone = {entry.path: entry for entry in source.entries if entry.path not in present}
    if not gone:
        return 0, 0
    removed = kept = 0
    for entry in scan(folder).entries:
        if entry.path not in gone:
            continue
        if entry != gone[entry.path]:
            kept += 1
            continue
        (folder / entry.path).unlink(missing_ok=True)
        removed += 1
        _prune(folder, folder / entry.path)
    return removed, kept


def _prune(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Folders that are empty now: a version has no empty folders."""
    for parent in path.parents:
        if parent == folder:
            return
        try:
            parent.rmdir()
        except OSError:
            return
