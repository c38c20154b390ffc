from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pathlib
import socket
import tarfile
import threading

import pytest

from tests.support.fake_api import Answer, FakeApi, Received, error
from tests.unit.guest_agent.sandbox import GuestSandbox, init, lines, result
from tests.unit.guest_agent.test_api_faults import hanging, on

SESSION = "11111111-2222-3333-4444-555555555555"


def archive(api: FakeApi, name: str = "work") -> dict[str, bytes | str]:
    """Path -> content (links: target) of the last version."""
    version = list(api.versions)[-1]
    data = api.objects[f"{name}/{version}/archive.tar.gz"]
    found: dict[str, bytes | str] = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        for member in tar:
            if member.isfile():
                found[member.name.removeprefix("./")] = tar.extractfile(member).read()  # type: ignore[union-attr]
            elif member.issym():
                found[member.name.removeprefix("./")] = member.linkname
    return found


def keep_history(sandbox: GuestSandbox, text: str = '{"line":1}\n') -> str:
    """A claude that leaves a history where Claude Code does."""
    return (
        "import os, re\n"
        "folder = os.path.join(os.environ['HOME'], '.claude/projects', re.sub('[^A-Za-z0-9]', '-', os.getcwd()))\n"
        "os.makedirs(folder, exist_ok=True)\n"
        f"open(os.path.join(folder, '{SESSION}.jsonl'), 'w').write({text!r})\n"
    )


def test_the_stored_folder_is_the_folder(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    script = """
    mkdir -p 'dir/sub dir' .git empty; echo a > a; echo b > 'dir/sub dir/b é'; : > empty-file
    head -c 3000000 /dev/urandom > big; ln -s dir/sub link; echo x > .git/config; printf '#!/bin/sh' > run; chmod +x run
    """
    done = sandbox.run(script, "command")
    assert done.code == 0, done
    expected: dict[str, bytes | str] = {
        str(path.relative_to(sandbox.workspace)): path.read_bytes()
        for path in sandbox.workspace.rglob("*")
        if path.is_file() and ".git" not in path.parts and not path.is_symlink()
    }
    assert archive(api) == {**expected, "link": "dir/sub"} and len(expected) == 5
    (checkpoint,) = api.checkpoints
    assert checkpoint.artifact_snapshot is not None
    version = checkpoint.artifact_snapshot.artifact_version
    manifest = json.loads(api.objects[f"work/{version}/manifest.json"])
    assert manifest["version"] == 1 and len(manifest["files"]) == 6 and manifest["createdAt"].endswith("Z")
    assert (checkpoint.cli_agent_type, checkpoint.cli_agent_session_id) == ("command", None)
    assert [r.content_type for r in api.received if r.method == "PUT"] == ["application/gzip", "application/json"]
    assert api.versions[version].message == f"Checkpoint from run {sandbox.run_id}"


def test_unchanged_content_is_not_uploaded_again(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    for _ in range(2):
        assert sandbox.run("echo same > file", "command").code == 0
    assert len([r for r in api.received if r.method == "PUT"]) == 2
    assert len(api.requests("/commit")) == 2 and len(api.versions) == 1


def test_an_empty_folder_has_a_manifest_only(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    assert sandbox.run("true", "command").code == 0
    assert [key.rpartition("/")[2] for key in api.objects] == ["manifest.json"]


def test_artifact_and_memory_are_both_stored(sandbox: GuestSandbox, api: FakeApi) -> None:
    memory = sandbox.root / "memory"
    memory.mkdir()
    sandbox.mount("ARTIFACT", sandbox.workspace)
    sandbox.mount("MEMORY", memory, "notes")
    sandbox.claude("import os, glob\nopen('made', 'w').write('x')\n"
                   "open(glob.glob(os.environ['HOME'] + '/.claude/projects/*/memory')[0] + '/note', 'w').write('y')\n"
                   + lines(result()))  # fmt: skip
    done = sandbox.run("work")
    assert done.code == 0, done
    (checkpoint,) = api.checkpoints
    assert checkpoint.memory_snapshot is not None and checkpoint.memory_snapshot.memory_name == "notes"
    assert archive(api, "notes") == {"note": b"y"}


def test_the_history_of_the_session(sandbox: GuestSandbox, api: FakeApi) -> None:
    text = '{"line":"é"}\n' * 100
    sandbox.claude(keep_history(sandbox, text) + lines(init(SESSION), result()))
    for count in (1, 2):
        assert sandbox.run("work").code == 0
        assert len([r for r in api.received if r.method == "PUT"]) == 1  # content-addressed
        assert len(api.checkpoints) == count
    digest = hashlib.sha256(text.encode()).hexdigest()
    for checkpoint in api.checkpoints:
        assert (checkpoint.cli_agent_session_id, checkpoint.cli_agent_session_history_hash) == (SESSION, digest)
    assert api.objects[f"blobs/{digest}.blob"] == text.encode()
    assert next(r for r in api.received if r.method == "PUT").content_type == "application/octet-stream"


@pytest.mark.parametrize("how", ["missing", "empty", "refused", "escaping id"])
def test_a_result_is_not_lost_because_of_its_history(sandbox: GuestSandbox, api: FakeApi, how: str) -> None:
    history = "" if how == "missing" else keep_history(sandbox, "" if how == "empty" else "x")
    if how == "refused":
        api.faults.append(lambda r: error(413, "PAYLOAD_TOO_LARGE") if r.path.endswith("/prepare-history") else None)
    session = "../../../etc/passwd" if how == "escaping id" else SESSION
    sandbox.claude(history + lines(init(session), result()))
    done = sandbox.run("work")
    assert done.code == 0, done
    (checkpoint,) = api.checkpoints
    assert checkpoint.cli_agent_session_id is None and checkpoint.cli_agent_session_history_hash is None


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/storages/prepare", error(403, "FORBIDDEN", "not yours"), "FORBIDDEN not yours"),
        ("/storages/prepare", Answer(200, b'{"versionId":"x"}'), "prepare: the answer is malformed"),
        ("/storages/prepare", Answer(200, b""), "prepare: the answer is malformed"),
        ("/archive.tar.gz", Answer(500), "archive.tar.gz: HTTP 500"),
        ("/manifest.json", Answer(403), "manifest.json: HTTP 403"),
        ("/storages/commit", Answer(0), "/storages/commit: transport error"),
        ("/agent/checkpoints", Answer(200, b"{}"), "checkpoint: the answer is malformed"),
        ("/agent/checkpoints", error(500, "INTERNAL_ERROR"), "HTTP 500 INTERNAL_ERROR"),
    ],
)
def test_a_checkpoint_that_fails_fails_a_good_run(
    sandbox: GuestSandbox, api: FakeApi, path: str, answer: Answer, words: str
) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    api.faults.append(lambda request: answer if request.path.endswith(path) else None)
    done = sandbox.run("echo x > f", "command")
    assert (done.code, done.outcome["reason"]) == (1, "checkpoint_failed"), done
    assert words in done.outcome["detail"]
    assert "sEcReT" not in done.stderr + json.dumps(done.outcome)
    assert len(api.events) == 1  # delivered all the same


def test_a_checkpoint_that_fails_does_not_change_a_bad_run(sandbox: GuestSandbox, api: FakeApi) -> None:
    api.faults.append(lambda request: Answer(500) if request.path.endswith("/checkpoints") else None)
    done = sandbox.run("exit 9", "command")
    assert done.code == 9 and "reason" not in done.outcome and "no checkpoint of this failed run" in done.stderr


def test_a_bad_run_keeps_its_work(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    assert sandbox.run("echo half > f; exit 9", "command").code == 9
    assert archive(api) == {"f": b"half\n"} and len(api.checkpoints) == 1


@pytest.mark.parametrize(
    ("driver", "folder", "words"), [("zfs", ".", "driver 'zfs' is not supported"), ("vas", "gone", "No such file")]
)
def test_a_mount_that_cannot_be_stored(
    sandbox: GuestSandbox, api: FakeApi, driver: str, folder: str, words: str
) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace / folder, driver=driver)
    done = sandbox.run("true", "command")
    assert (done.code, done.outcome["reason"]) == (1, "checkpoint_failed") and words in done.outcome["detail"]


def test_what_cannot_be_stored_is_said(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sandbox.workspace / "s"))
    os.mkfifo(sandbox.workspace / "fifo")
    done = sandbox.run("echo x > f; truncate -s 101M huge", "command")
    assert done.code == 0, done
    assert archive(api) == {"f": b"x\n"}
    for name in ("s", "fifo", "huge"):
        assert f"not stored: {sandbox.workspace}/{name}: " in api.system_log()


def test_a_folder_that_changes_while_it_is_stored(sandbox: GuestSandbox, api: FakeApi) -> None:
    """A process of another session still writes: tried again, until it is quiet."""
    sandbox.mount("ARTIFACT", sandbox.workspace)
    changes: list[int] = []

    def change(request: Received) -> None:
        if request.path.endswith("/storages/prepare") and len(changes) < 2:
            changes.append(1)
            (sandbox.workspace / "f").write_text("changed " * len(changes))

    api.faults.append(change)
    done = sandbox.run("echo x > f", "command")
    assert done.code == 0 and "starting again" in done.stderr, done
    assert archive(api) == {"f": b"changed changed "}


def test_the_runner_ends_the_run_during_the_checkpoint(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    hang = threading.Event()
    api.faults.append(on("/storages/prepare", hanging(hang)))
    process = sandbox.start("echo x > f", "command")
    api.wait_for(lambda: api.requests("/storages/prepare"))
    process.terminate()
    try:
        done = sandbox.finish(process, timeout_s=15)
    finally:
        hang.set()
    assert (done.code, done.outcome["reason"]) == (143, "terminated")
    assert "while the checkpoint was being stored" in done.outcome["detail"]


def test_nothing_is_left_in_the_runtime_directory(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.mount("ARTIFACT", sandbox.workspace)
    assert sandbox.run("echo x > f", "command").code == 0
    assert sorted(path.name for path in pathlib.Path(sandbox.runtime).iterdir()) == [
        "agent.log", "metrics.jsonl", "outcome.json", "sandbox-ops.jsonl", "system.log"
    ]  # fmt: skip
