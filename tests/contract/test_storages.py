"""Storages, objects and signed addresses."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pathlib
import sqlite3
import urllib.parse
from typing import Any

import pytest
import yarl

from tests.contract.plane import Plane, file_entries, running_plane
from vm0.contracts.storages import FileEntry, version_id

FILES = {"a.txt": b"alpha", "dir/b.bin": b"\0\1" * 1000}


async def test_prepare_upload_commit_fetch(plane: Plane) -> None:
    version = await plane.upload("volume", "data", FILES)
    head = await plane.call("GET", "/api/storages/volume/data/versions/head", plane.user)
    assert head["versionId"] == version
    assert (head["size"], head["fileCount"]) == (2005, 2)
    assert await plane.get(head["archiveUrl"]) == b"\n".join(FILES.values())
    same = await plane.call("GET", f"/api/storages/volume/data/versions/{version}", plane.user)
    assert same["versionId"] == version


async def test_the_same_content_is_not_uploaded_twice(plane: Plane) -> None:
    version = await plane.upload("volume", "data", FILES)
    body = {"storageName": "data", "storageType": "volume", "files": file_entries(FILES)}
    assert await plane.call("POST", "/api/storages/prepare", plane.user, body) == {
        "versionId": version,
        "existing": True,
    }
    body["versionId"] = version
    answer = await plane.call("POST", "/api/storages/commit", plane.user, body)
    assert answer["deduplicated"] is True


async def test_the_version_id_is_the_contract_s(plane: Plane) -> None:
    version = await plane.upload("volume", "data", FILES)
    entries = [FileEntry(path=e["path"], hash=e["hash"], size=e["size"]) for e in file_entries(FILES)]
    found = plane.handle.context.objects.path("alice/volume/data")
    assert [folder.name for folder in found.iterdir()] == [version]
    path = plane.handle.context.config.database_path
    with sqlite3.connect(path) as connection:
        (storage_id,) = connection.execute("SELECT storage_id FROM storages").fetchone()
    connection.close()
    assert version == version_id(storage_id, entries)


async def test_going_back_to_an_older_version_moves_the_head(plane: Plane) -> None:
    old = await plane.upload("volume", "data", {"a": b"1"})
    new = await plane.upload("volume", "data", {"a": b"2"})
    assert old != new
    assert await plane.upload("volume", "data", {"a": b"1"}) == old
    head = await plane.call("GET", "/api/storages/volume/data/versions/head", plane.user)
    assert head["versionId"] == old


async def test_an_empty_version_has_no_archive(plane: Plane) -> None:
    body: dict[str, Any] = {"storageName": "data", "storageType": "artifact", "files": []}
    prepared = await plane.call("POST", "/api/storages/prepare", plane.user, body)
    await plane.put(prepared["uploads"]["manifest"]["presignedUrl"], b"{}")
    body["versionId"] = prepared["versionId"]
    await plane.call("POST", "/api/storages/commit", plane.user, body)
    view = await plane.call("GET", "/api/storages/artifact/data/versions/head", plane.user)
    assert view["fileCount"] == 0 and "archiveUrl" not in view


@pytest.mark.parametrize("uploaded", [(), ("archive",), ("manifest",)])
async def test_a_version_cannot_be_committed_before_both_objects_are_there(
    plane: Plane, uploaded: tuple[str, ...]
) -> None:
    body: dict[str, Any] = {"storageName": "data", "storageType": "volume", "files": file_entries(FILES)}
    prepared = await plane.call("POST", "/api/storages/prepare", plane.user, body)
    for name in uploaded:
        await plane.put(prepared["uploads"][name]["presignedUrl"], b"x")
    body["versionId"] = prepared["versionId"]
    message = await plane.error("POST", "/api/storages/commit", plane.user, body, want="BAD_REQUEST")
    assert message.startswith("versionId:")
    await plane.call("GET", "/api/storages/volume/data/versions/head", plane.user, want="NOT_FOUND")


async def test_a_commit_must_name_the_version_of_its_files(plane: Plane) -> None:
    await plane.upload("volume", "data", FILES)
    body = {"storageName": "data", "storageType": "volume", "files": file_entries(FILES), "versionId": "0" * 64}
    message = await plane.error("POST", "/api/storages/commit", plane.user, body, want="BAD_REQUEST")
    assert message.startswith("versionId:")


async def test_lost_objects_are_told_and_can_be_uploaded_again(plane: Plane) -> None:
    version = await plane.upload("volume", "data", FILES)
    plane.handle.context.objects.path(f"alice/volume/data/{version}/archive.tar.gz").unlink()
    body = {"storageName": "data", "storageType": "volume", "files": file_entries(FILES), "versionId": version}
    await plane.call("POST", "/api/storages/commit", plane.user, body, want="S3_FILES_MISSING")
    assert await plane.upload("volume", "data", FILES) == version
    head = await plane.call("GET", "/api/storages/volume/data/versions/head", plane.user)
    assert await plane.get(head["archiveUrl"])


async def test_an_upload_address_cannot_change_a_committed_version(plane: Plane) -> None:
    body: dict[str, Any] = {"storageName": "data", "storageType": "volume", "files": file_entries(FILES)}
    prepared = await plane.call("POST", "/api/storages/prepare", plane.user, body)
    for upload in prepared["uploads"].values():
        await plane.put(upload["presignedUrl"], b"good")
    body["versionId"] = prepared["versionId"]
    await plane.call("POST", "/api/storages/commit", plane.user, body)
    await plane.put(prepared["uploads"]["archive"]["presignedUrl"], b"evil")
    await plane.call("POST", "/api/storages/commit", plane.user, body)
    head = await plane.call("GET", "/api/storages/volume/data/versions/head", plane.user)
    assert await plane.get(head["archiveUrl"]) == b"good"


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("/api/storages/volume/none/versions/head", "NOT_FOUND"),
        (f"/api/storages/volume/data/versions/{'0' * 64}", "NOT_FOUND"),
        ("/api/storages/volume/data/versions/latest", "BAD_REQUEST"),
        ("/api/storages/disk/data/versions/head", "BAD_REQUEST"),
        ("/api/storages/artifact/data/versions/head", "NOT_FOUND"),
    ],
)
async def test_what_is_not_there(plane: Plane, path: str, want: str) -> None:
    await plane.upload("volume", "data", FILES)
    await plane.call("GET", path, plane.user, want=want)


async def test_more_than_the_limit_is_refused_before_it_is_uploaded(tmp_path: pathlib.Path) -> None:
    async with running_plane(tmp_path / "s", max_object_bytes=10_000_000) as plane:
        files = [{"path": "a", "hash": "0" * 64, "size": 10_000_000}]
        body = {"storageName": "data", "storageType": "volume", "files": files}
        await plane.call("POST", "/api/storages/prepare", plane.user, body, want="PAYLOAD_TOO_LARGE")


def changed(url: str, **query: str) -> str:
    parts = urllib.parse.urlsplit(url)
    values = dict(urllib.parse.parse_qsl(parts.query)) | query
    return parts._replace(query=urllib.parse.urlencode({k: v for k, v in values.items() if v})).geturl()


async def test_only_what_was_signed_is_served(plane: Plane) -> None:
    await plane.upload("volume", "data", FILES)
    url = (await plane.call("GET", "/api/storages/volume/data/versions/head", plane.user))["archiveUrl"]
    assert await plane.get(url)
    for bad in (
        changed(url, signature=""),
        changed(url, signature="0" * 64),
        changed(url, signature="é"),
        changed(url, expires="99999999999"),
        changed(url, expires="x"),
        changed(url, expires="-1"),
        changed(url, max="1"),
        changed(url, max=""),
        url.replace("archive.tar.gz", "manifest.json"),
        url.replace("/alice/", "/bob/"),
    ):
        await plane.call("GET", bad, want="FORBIDDEN")
    await plane.put(url, b"evil", want="FORBIDDEN")
    plane.clock.advance(3601)
    await plane.call("GET", url, want="FORBIDDEN")


@pytest.mark.parametrize(
    "key", ["../secret", "a/../../secret", ".hidden", "a//b", "", "a/./b", "a/b\0", "%2e%2e/secret", "a\\..\\b", "é"]
)
async def test_no_key_leads_out_of_the_store_even_when_it_is_signed(plane: Plane, key: str) -> None:
    outside = plane.handle.context.config.state_dir / "secret"
    outside.write_text("secret")
    for method in ("GET", "PUT"):
        url = plane.handle.context.signer.sign(method, key, 100)
        async with plane.http.request(method, _raw(plane, url), data=b"x" if method == "PUT" else None) as response:
            assert response.status in (400, 403, 404), await response.text()
            assert "error" in await response.json()
    assert outside.read_text() == "secret"


def _raw(plane: Plane, url: str) -> Any:
    return yarl.URL(plane.handle.url + url, encoded=True)


async def test_an_upload_larger_than_signed_is_refused(plane: Plane) -> None:
    url = plane.handle.context.signer.sign("PUT", "alice/x", 10)
    await plane.put(url, b"x" * 11, want="PAYLOAD_TOO_LARGE")
    await plane.put(url, b"x" * 10)


async def test_an_upload_needs_its_length(plane: Plane) -> None:
    url = plane.handle.context.signer.sign("PUT", "alice/x", 10)

    async def pieces() -> Any:
        yield b"12345"

    async with plane.http.put(url, data=pieces()) as response:
        answer = await response.json()
    assert response.status == 400
    assert answer["error"]["message"].startswith("Content-Length:")


async def test_a_blob_must_be_what_its_name_says(plane: Plane) -> None:
    data = os.urandom(3_000_000)
    digest = hashlib.sha256(data).hexdigest()
    key = f"alice/blobs/{digest}.blob"
    url = plane.handle.context.signer.sign("PUT", key, len(data))
    await plane.put(url, data[:-1] + b"\0" if data[-1] else data[:-1] + b"\1", want="BAD_REQUEST")
    assert not plane.handle.context.objects.exists(key)
    await plane.put(url, data)
    assert await plane.get(plane.handle.context.signer.sign("GET", key)) == data


async def test_an_upload_that_breaks_off_leaves_nothing(plane: Plane) -> None:
    url = plane.handle.context.signer.sign("PUT", "alice/x", 10_000_000)
    _, writer = await asyncio.open_connection(plane.handle.host, plane.handle.port)
    head = f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n"
    writer.write(head.encode() + b"x" * 3_000_000)
    await writer.drain()
    incoming = plane.handle.context.objects._incoming
    async with asyncio.timeout(20):
        while not any(path.stat().st_size for path in incoming.iterdir()):
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        while any(incoming.iterdir()):
            await asyncio.sleep(0.01)
    assert not plane.handle.context.objects.exists("alice/x")


async def test_a_run_gets_addresses_of_what_was_there_when_it_was_submitted(plane: Plane) -> None:
    await plane.upload("volume", "data", {"a": b"old"})
    artifact = await plane.upload("artifact", "work", {"w": b"work"})
    run_id = await plane.submit(
        storages=[{"name": "data", "mountPath": "/data"}],
        artifact={"name": "work", "mountPath": "/work", "versionId": artifact},
        memory={"name": "new-memory", "mountPath": "/memory"},
    )
    await plane.upload("volume", "data", {"a": b"new"})
    manifest = (await plane.claim(run_id)).context["storageManifest"]
    (volume,) = manifest["storages"]
    assert volume["mountPath"] == "/data"
    assert await plane.get(volume["archiveUrl"]) == b"old"
    assert manifest["artifact"]["vasVersionId"] == artifact
    assert await plane.get(manifest["artifact"]["archiveUrl"]) == b"work"
    assert manifest["memory"] == {"mountPath": "/memory", "vasStorageName": "new-memory"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"storages": [{"name": "none", "mountPath": "/d"}]}, "storages[0].name"),
        (
            {"storages": [{"name": "data", "mountPath": "/d"}, {"name": "no", "mountPath": "/e"}]},
            "storages[1].name",
        ),
        ({"storages": [{"name": "data", "mountPath": "/d", "versionId": "0" * 64}]}, "storages[0].versionId"),
        ({"artifact": {"name": "none", "mountPath": "/d", "versionId": "0" * 64}}, "artifact.versionId"),
        ({"memory": {"name": "none", "mountPath": "/d", "versionId": "0" * 64}}, "memory.versionId"),
        ({"resumeRunId": "00000000-0000-0000-0000-000000000000"}, "resumeRunId"),
    ],
)
async def test_a_run_names_only_what_exists(plane: Plane, fields: dict[str, Any], path: str) -> None:
    await plane.upload("volume", "data", FILES)
    body = {"prompt": "x", "cliAgentType": "command", **fields}
    message = await plane.error("POST", "/api/runs", plane.user, body, want="BAD_REQUEST")
    assert message.startswith(f"{path}:"), message
    assert (await plane.call("GET", "/api/runs", plane.user))["runs"] == []


async def test_somebody_else_s_storage_does_not_exist(plane: Plane) -> None:
    version = await plane.upload("volume", "data", FILES)
    body = {
        "prompt": "x",
        "cliAgentType": "command",
        "storages": [{"name": "data", "mountPath": "/d", "versionId": version}],
    }
    await plane.call("POST", "/api/runs", plane.other, body, want="BAD_REQUEST")


ARTIFACT = {"name": "work", "mountPath": "/work"}


@pytest.mark.parametrize(
    "mount", [("volume", "data"), ("artifact", "other"), ("memory", "work"), ("artifact", "notes")]
)
async def test_a_run_writes_only_the_artifact_and_memory_it_mounts(plane: Plane, mount: tuple[str, str]) -> None:
    await plane.upload("volume", "data", FILES)
    lease = await plane.submit_and_claim(
        artifact=ARTIFACT,
        memory={"name": "notes", "mountPath": "/notes"},
        storages=[{"name": "data", "mountPath": "/data"}],
    )
    kind, name = mount
    body: dict[str, Any] = {"storageName": name, "storageType": kind, "files": []}
    await plane.webhook(lease, "storages/prepare", want="FORBIDDEN", **body)
    await plane.webhook(lease, "storages/commit", want="FORBIDDEN", versionId="0" * 64, **body)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (
            {"cliAgentSessionId": "s", "cliAgentSessionHistoryHash": "0" * 64},
            "cliAgentSessionHistoryHash",
        ),
        (
            {"artifactSnapshot": {"artifactName": "work", "artifactVersion": "0" * 64}},
            "artifactSnapshot.artifactVersion",
        ),
        ({"memorySnapshot": {"memoryName": "m", "memoryVersion": "0" * 64}}, "memorySnapshot.memoryVersion"),
    ],
)
async def test_a_checkpoint_names_only_what_is_stored(plane: Plane, fields: dict[str, Any], path: str) -> None:
    lease = await plane.submit_and_claim(artifact=ARTIFACT)
    answer = await plane.webhook(lease, "checkpoints", cliAgentType="x", want="BAD_REQUEST", **fields)
    assert answer["error"]["message"].startswith(f"{path}:")
    assert "checkpoint" not in await plane.view(lease.run_id)


async def test_a_repeated_checkpoint_keeps_its_id(plane: Plane) -> None:
    lease = await plane.submit_and_claim()
    first = await plane.webhook(lease, "checkpoints", cliAgentType="x")
    assert await plane.webhook(lease, "checkpoints", cliAgentType="x") == first
