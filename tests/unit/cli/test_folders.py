"""Folders to the server and back, with the real server."""

from __future__ import annotations

import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator

import pytest

from vm0.archive.pack import pack
from vm0.archive.scan import scan
from vm0.cli.api import ApiClient
from vm0.cli.errors import CliError
from vm0.cli.folder_upload import Uploaded, scanned, upload
from vm0.cli.output_folder import write_output
from vm0.contracts.names import MAX_FILE_BYTES
from vm0.contracts.runs import CheckpointView
from vm0.contracts.storages import StorageType

KIND = StorageType.ARTIFACT


def checkpoint(uploaded: Uploaded) -> CheckpointView:
    return CheckpointView(checkpoint_id="c", artifact_name=uploaded.name, artifact_version=uploaded.version_id)


def content(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
    return {entry.path: (entry.hash, entry.kind.value) for entry in scan(folder).entries}


async def test_round_trip(client: ApiClient, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    uploaded = await upload(client, folder, KIND, pytest.fail)
    assert not uploaded.reused
    stored = await client.version(KIND, uploaded.name)
    assert (stored.version_id, stored.file_count) == (uploaded.version_id, 3)
    written = await write_output(client, checkpoint(uploaded), tmp_path / "out", uploaded)
    assert (written.files, written.removed, written.refused) == (3, 0, ())
    assert content(tmp_path / "out") == content(folder)
    assert os.readlink(tmp_path / "out" / "link") == "README"


async def test_the_same_content_is_not_uploaded_again(client: ApiClient, folder: pathlib.Path) -> None:
    first = await upload(client, folder, KIND, pytest.fail)
    (folder / "README").write_text("other\n")
    changed = await upload(client, folder, KIND, pytest.fail)
    (folder / "README").write_text("hello\n")
    again = await upload(client, folder, KIND, pytest.fail)
    assert (first.reused, changed.reused, again.reused) == (False, False, True)
    assert first.version_id == again.version_id != changed.version_id
    assert (await client.version(KIND, first.name)).version_id == first.version_id


async def test_an_empty_folder(client: ApiClient, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    uploaded = await upload(client, tmp_path / "empty", KIND, pytest.fail)
    written = await write_output(client, checkpoint(uploaded), tmp_path / "out", None)
    assert written.files == 0
    assert list((tmp_path / "out").iterdir()) == []


async def test_what_cannot_be_stored_is_named_and_left_out(client: ApiClient, folder: pathlib.Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to("..")
    os.mknod(os.fsencode(folder) + b"/caf\xe9", 0o644)
    said: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        uploaded = await upload(client, folder, KIND, said.append)
    (text,) = said
    assert "fifo: is a FIFO" in text and "socket: is a socket" in text and "not valid UTF-8" in text
    assert {"loop", "up", "README"} <= {entry.path for entry in uploaded.entries}
    assert len(uploaded.entries) == 5


def test_a_device_is_left_out(folder: pathlib.Path) -> None:
    try:
        os.mknod(folder / "null", 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        if os.environ.get("CI"):
            raise
        pytest.skip("only root can make devices")
    assert [item.reason for item in scanned(folder).skipped] == ["is a character device, which cannot be stored"]


async def test_a_file_over_the_limit_is_refused_by_name(client: ApiClient, folder: pathlib.Path) -> None:
    with (folder / "src" / "huge.bin").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(CliError, match=r"(?s)cannot be stored:.*src/huge\.bin: is 104857601 bytes"):
        await upload(client, folder, KIND, pytest.fail)


@pytest.fixture
def unprivileged() -> Iterator[pathlib.Path]:
    """A folder everybody can reach. Root can read everything: whoever runs the test is nobody until its end."""
    with tempfile.TemporaryDirectory(prefix="vm0-test-", dir="/tmp") as name:
        folder = pathlib.Path(name, "folder")
        folder.mkdir()
        for number in range(15):
            (folder / f"secret-{number:02}").touch(mode=0o000)
        if os.geteuid() != 0:
            yield folder
            return
        pathlib.Path(name).chmod(0o755)
        folder.chmod(0o755)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_files_that_cannot_be_read_are_refused_by_name(unprivileged: pathlib.Path) -> None:
    with pytest.raises(CliError) as raised:
        scanned(unprivileged)
    lines = str(raised.value).splitlines()
    assert lines[1] == "  secret-00: cannot be read: Permission denied"
    assert lines[-1] == "  and 5 more"
    assert "readable" in raised.value.hint


async def test_output_replaces_what_the_version_has_and_keeps_the_rest(
    client: ApiClient, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    uploaded = await upload(client, folder, KIND, pytest.fail)
    out = tmp_path / "out"
    out.mkdir()
    (out / "README").write_text("old")
    (out / "mine").write_text("mine")
    await write_output(client, checkpoint(uploaded), out, uploaded)
    assert (out / "README").read_text() == "hello\n"
    assert (out / "mine").read_text() == "mine"


async def test_output_to_the_folder_itself_removes_what_the_run_deleted(
    client: ApiClient, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("deleted", "src/deep/deleted", "changed-here"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    uploaded = await upload(client, folder, KIND, pytest.fail)
    result = tmp_path / "result"  # what the run made of it
    result.mkdir()
    (result / "README").write_text("by the run\n")
    of_run = await _stored_as(client, result, uploaded.name)
    (folder / "changed-here").write_text("changed while the run was going")
    (folder / "new-here").write_text("new")
    written = await write_output(client, of_run, folder, uploaded)
    assert (written.files, written.removed, written.kept) == (1, 4, 1)
    assert set(content(folder)) == {"README", "changed-here", "new-here"}
    assert not (folder / "src").exists()
    assert (folder / "README").read_text() == "by the run\n"


async def _stored_as(client: ApiClient, folder: pathlib.Path, name: str) -> CheckpointView:
    """A version of the storage `name` with the content of another folder, as a guest's snapshot makes it."""
    from vm0.contracts.storages import CommitRequest, FileEntry, PrepareRequest

    found = scan(folder)
    files = tuple(FileEntry(path=entry.path, hash=entry.hash, size=entry.size) for entry in found.entries)
    prepared = await client.prepare(PrepareRequest(storage_name=name, storage_type=KIND, files=files))
    assert prepared.uploads is not None
    archive = folder.with_suffix(".tar.gz")
    with archive.open("wb") as file:
        pack(folder, found.entries, file)
    manifest = folder.with_suffix(".json")
    manifest.write_text("{}")
    await client.put_object(prepared.uploads.archive, archive, "application/gzip")
    await client.put_object(prepared.uploads.manifest, manifest, "application/json")
    await client.commit(
        CommitRequest(storage_name=name, storage_type=KIND, version_id=prepared.version_id, files=files)
    )
    return CheckpointView(checkpoint_id="c", artifact_name=name, artifact_version=prepared.version_id)


async def test_what_is_in_the_way_is_named(client: ApiClient, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    uploaded = await upload(client, folder, KIND, pytest.fail)
    out = tmp_path / "out"
    (out / "README" / "inner").mkdir(parents=True)
    with pytest.raises(CliError, match=r"(?s)not everything could be written.*README"):
        await write_output(client, checkpoint(uploaded), out, uploaded)
    assert (out / "README" / "inner").is_dir()
    assert (out / "src" / "run.sh").exists()


async def test_links_cannot_lead_the_output_elsewhere(
    client: ApiClient, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A link where the version has a folder, planted in the output, is not followed."""
    uploaded = await upload(client, folder, KIND, pytest.fail)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "src").symlink_to(elsewhere)
    with pytest.raises(CliError, match="src"):
        await write_output(client, checkpoint(uploaded), out, uploaded)
    assert list(elsewhere.iterdir()) == []


async def test_a_run_without_artifact_has_no_output(client: ApiClient, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CliError, match="no artifact"):
        await write_output(client, CheckpointView(checkpoint_id="c"), tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
