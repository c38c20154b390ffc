"""Resuming a run: its session, its artifact at the checkpoint's version, its memory."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.contract.plane import Claimed, Plane, file_entries


async def checkpointed(plane: Plane, lease: Claimed, files: dict[str, bytes], history: bytes | None) -> str:
    """What the guest agent does at the end of a run; returns the artifact's version."""
    entries = file_entries(files)
    body: dict[str, Any] = {"storageName": "work", "storageType": "artifact", "files": entries}
    prepared = await plane.webhook(lease, "storages/prepare", **body)
    for upload in (prepared.get("uploads") or {}).values():
        await plane.put(upload["presignedUrl"], b"\n".join(files.values()))
    await plane.webhook(lease, "storages/commit", versionId=prepared["versionId"], **body)
    session: dict[str, Any] = {}
    if history is not None:
        digest = hashlib.sha256(history).hexdigest()
        where = await plane.webhook(lease, "checkpoints/prepare-history", hash=digest, size=len(history))
        if not where["existing"]:
            await plane.put(where["presignedUrl"], history)
        session = {"cliAgentSessionId": "session-1", "cliAgentSessionHistoryHash": digest}
    snapshot = {"artifactName": "work", "artifactVersion": prepared["versionId"]}
    await plane.webhook(lease, "checkpoints", cliAgentType="x", artifactSnapshot=snapshot, **session)
    await plane.complete(lease, exitCode=0)
    return str(prepared["versionId"])


ARTIFACT = {"name": "work", "mountPath": "/work"}


async def test_a_second_run_resumes_the_first_one(plane: Plane) -> None:
    lease = await plane.submit_and_claim(
        cliAgentType="mock-claude", artifact=ARTIFACT, memory={"name": "notes", "mountPath": "/notes"}
    )
    version = await checkpointed(plane, lease, {"a": b"after"}, b'{"history": 1}\n')
    view = await plane.view(lease.run_id)
    assert view["checkpoint"]["cliAgentSessionId"] == "session-1"
    assert view["checkpoint"]["artifactVersion"] == version
    await plane.upload("artifact", "work", {"a": b"somebody else's newer version"})
    resumed = await plane.submit_and_claim(cliAgentType="mock-claude", resumeRunId=lease.run_id)
    session = resumed.context["resumeSession"]
    assert session["sessionId"] == "session-1"
    assert await plane.get(session["sessionHistoryUrl"]) == b'{"history": 1}\n'
    assert session["sessionHistoryHash"] == hashlib.sha256(b'{"history": 1}\n').hexdigest()
    manifest = resumed.context["storageManifest"]
    assert (manifest["artifact"]["mountPath"], manifest["artifact"]["vasVersionId"]) == ("/work", version)
    assert await plane.get(manifest["artifact"]["archiveUrl"]) == b"after"
    assert manifest["memory"]["vasStorageName"] == "notes"
    assert (await plane.view(resumed.run_id))["resumedFrom"] == lease.run_id


@pytest.mark.parametrize("named", [None, "same", "version", "other"])
async def test_the_artifact_that_is_asked_for_wins(plane: Plane, named: str | None) -> None:
    first = await plane.upload("artifact", "work", {"a": b"before"})
    other = await plane.upload("artifact", "other", {"o": b"other"})
    lease = await plane.submit_and_claim(artifact=ARTIFACT)
    after = await checkpointed(plane, lease, {"a": b"after"}, None)
    artifact: dict[str, Any] | None = {
        None: None,
        "same": {"name": "work", "mountPath": "/elsewhere"},
        "version": {"name": "work", "mountPath": "/elsewhere", "versionId": first},
        "other": {"name": "other", "mountPath": "/elsewhere"},
    }[named]
    resumed = await plane.submit_and_claim(resumeRunId=lease.run_id, **({"artifact": artifact} if artifact else {}))
    mount = resumed.context["storageManifest"]["artifact"]
    expected = {None: after, "same": after, "version": first, "other": other}[named]
    assert mount["vasVersionId"] == expected
    assert mount["mountPath"] == ("/work" if named is None else "/elsewhere")


@pytest.mark.parametrize("state", ["running", "no checkpoint", "no session", "somebody else's", "path taken"])
async def test_what_cannot_be_resumed(plane: Plane, state: str) -> None:
    lease = await plane.submit_and_claim(cliAgentType="mock-claude", artifact=ARTIFACT)
    if state == "no checkpoint":
        await plane.complete(lease, exitCode=1)
    elif state == "no session":
        await checkpointed(plane, lease, {"a": b"b"}, None)
    elif state != "running":
        await checkpointed(plane, lease, {"a": b"b"}, b"history")
    body: dict[str, Any] = {"prompt": "x", "cliAgentType": "mock-claude", "resumeRunId": lease.run_id}
    if state == "path taken":
        await plane.upload("volume", "data", {"a": b"b"})
        body["storages"] = [{"name": "data", "mountPath": "/work"}]
    token = plane.other if state.startswith("somebody") else plane.user
    message = await plane.error("POST", "/api/runs", token, body, want="BAD_REQUEST")
    assert message.startswith("storages:" if state == "path taken" else "resumeRunId:"), message


async def test_a_known_hash_does_not_give_somebody_else_s_history(plane: Plane) -> None:
    lease = await plane.submit_and_claim(cliAgentType="mock-claude", artifact=ARTIFACT)
    await checkpointed(plane, lease, {"a": b"b"}, b"alice's history")
    run_id = await plane.submit(plane.other, cliAgentType="mock-claude")
    other = await plane.claim(run_id)
    digest = hashlib.sha256(b"alice's history").hexdigest()
    where = await plane.webhook(other, "checkpoints/prepare-history", hash=digest, size=15)
    assert where["existing"] is False
