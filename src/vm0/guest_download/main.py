"""`guest-download [--owner UID:GID] MANIFEST | --manifest-stdin`: exit code 0 if every folder is as it should be.

1. Every folder of the manifest is made, so that none can be made by an archive. 2. Items are fetched, four at a time.
3. Each item is tried even if another failed; the log and the timing records say what happened to which.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from vm0.archive.tree import Owner
from vm0.contracts import codec
from vm0.contracts.manifest import StorageManifest
from vm0.guest_common import environment
from vm0.guest_common.http import ApiClient
from vm0.guest_common.log import DOWNLOAD_TAG, Log, describe, die, system_log
from vm0.guest_common.operations import Operations, run_operations
from vm0.guest_download.fetch import Fetcher, FetchError
from vm0.guest_download.plan import Item, plan_items
from vm0.guest_download.schedule import run_all

USAGE = "usage: guest-download [--owner UID:GID] MANIFEST | --manifest-stdin"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class UsageError(Exception):
    """the command line is wrong"""


def main(argv: list[str]) -> int:
    try:
        owner, path = parse_arguments(argv)
        manifest = read_manifest(path)
    except UsageError as exc:
        return die(DOWNLOAD_TAG, str(exc), USAGE)
    except (OSError, codec.ContractError) as exc:
        return die(DOWNLOAD_TAG, f"the manifest cannot be read: {describe(exc)}")
    surroundings = environment.read()
    run_log = system_log(DOWNLOAD_TAG, surroundings.runtime_dir)
    if owner is not None and os.geteuid() != 0:
        run_log.warn("--owner is ignored: only root can give files away")
        owner = None
    try:
        client = None if surroundings.local else ApiClient(surroundings.api_url)
    except ValueError as exc:
        return die(DOWNLOAD_TAG, f"VM0_API_URL: {exc}")
    fetcher = Fetcher(client, run_log, owner=owner)
    return download_all(plan_items(manifest), fetcher, run_log, run_operations(surroundings.runtime_dir))


def parse_arguments(argv: Sequence[str]) -> tuple[Owner | None, str | None]:
    """Owner and manifest path, None for stdin. :raises UsageError: anything else."""
    owner: Owner | None = None
    sources: list[str | None] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--owner":
            found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", words.pop(0) if words else "", re.ASCII)
            if found is None:
                raise UsageError("--owner takes two numbers: UID:GID")
            owner = (int(found[1]), int(found[2]))
        elif word == "--manifest-stdin":
            sources.append(None)
        elif word.startswith("-"):
            raise UsageError(f"unknown option {word!r}")
        else:
            sources.append(word)
    if len(sources) != 1:
        raise UsageError("exactly one manifest is needed")
    return owner, sources[0]


def read_manifest(path: str | None) -> StorageManifest:
    """:raises OSError: it cannot be read. :raises ContractError: it is no manifest."""
    if path is None:
        data = sys.stdin.buffer.read(MAX_MANIFEST_BYTES + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise codec.ContractError("", f"is larger than {MAX_MANIFEST_BYTES} bytes")
    return codec.loads(StorageManifest, data)


def download_all(items: Sequence[Item], fetcher: Fetcher, run_log: Log, operations: Operations) -> int:
    """Make all folders, then fill them; the exit code."""
    failed: list[str] = []

    def fill(item: Item) -> None:
        with operations.timed(item.operation) as timing:
            try:
                fetcher.fill(item)
            except FetchError as exc:
                error = str(exc)
            except Exception as exc:  # our bug must not take the other items with it
                error = f"{item.mount_path}: bug: {exc!r}"
            else:
                return
            failed.append(item.mount_path)
            run_log.error(error)
            timing.failed(error)

    with operations.timed("download_total") as timing:
        ready = []
        for item in items:
            try:
                fetcher.make_folder(item)
                ready.append(item)
            except OSError as exc:
                error = f"{item.mount_path}: the folder cannot be made: {describe(exc)}"
                failed.append(item.mount_path)
                run_log.error(error)
                operations.record(item.operation, 0, False, error)
        run_all(ready, fill)
        if failed:
            timing.failed(f"{len(failed)} of {len(items)} failed")
            run_log.error(f"{len(failed)} of {len(items)} failed: {', '.join(sorted(failed))}")
        else:
            run_log.info(f"{len(items)} folders are ready")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
