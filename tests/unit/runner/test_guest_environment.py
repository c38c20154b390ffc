"""What the guest is told: compared with what guest-agent's own reader makes of it."""

from __future__ import annotations

import json

from vm0.contracts import codec
from vm0.contracts.manifest import ManifestEntry, StorageManifest
from vm0.contracts.runner import ExecutionContext, Lease, ResumeSession
from vm0.contracts.runs import AgentKind, Isolation
from vm0.guest_agent import payload as guest_payload
from vm0.guest_agent.session import project_folder
from vm0.guest_common.environment import Environment
from vm0.runner import guest_environment as guest

VIEW = guest.GuestView(
    guest_path=lambda path: f"/sandboxes/s-1.x/root{path}",
    api_url="unix:/run/bridge.sock",
    mock_claude=("/usr/bin/python3", "-I", "guest bundle.pyz", "guest-mock-claude"),
)
ENTRY = ManifestEntry(mount_path="/work/a_b.c", archive_url="/api/objects/x?signature=1", vas_storage_name="n",
                      vas_version_id="v")  # fmt: skip


def context(**changes: object) -> ExecutionContext:
    fields: dict[str, object] = {
        "run_id": "11111111-2222-4333-8444-555555555555", "prompt": "p", "cli_agent_type": AgentKind.MOCK_CLAUDE,
        "sandbox_token": "vm0_sandbox_secret", "working_dir": "/work/a_b.c", "lease": Lease(epoch=1, ttl_seconds=30),
        "timeout_seconds": 5, "isolation": Isolation.PROCESS,
    }  # fmt: skip
    return ExecutionContext(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_agent_reads_what_we_write() -> None:
    given = context(
        storage_manifest=StorageManifest(artifact=ENTRY, memory=ENTRY),
        resume_session=ResumeSession(session_id="s", session_history_url="/x", session_history_hash="0" * 64),
        api_start_time=1234,
        user_timezone="Europe/Berlin",
    )
    variables = guest.agent_environment(given, VIEW)
    seen = Environment(variables)
    assert seen.invalid == []
    assert (seen.run_id, seen.api_url, seen.cli_agent_type) == (given.run_id, VIEW.api_url, "mock-claude")
    assert seen.working_dir == "/sandboxes/s-1.x/root/work/a_b.c"
    assert seen.home == "/sandboxes/s-1.x/root/home/user"
    assert seen.runtime_dir == f"/sandboxes/s-1.x/root/tmp/vm0-run-{given.run_id}"
    assert seen.payload_file == f"{seen.runtime_dir}/payload.json"
    assert seen.mock_claude_command == VIEW.mock_claude
    assert (seen.resume_session_id, seen.api_start_time_ms) == ("s", 1234)
    assert seen.artifact is not None and seen.memory is not None
    for mount in (seen.artifact, seen.memory):
        assert (mount.driver, mount.name, mount.version_id) == ("vas", "n", "v")
        assert mount.mount_path == VIEW.guest_path(ENTRY.mount_path)
    assert variables["TZ"] == "Europe/Berlin"
    assert not any("vm0_sandbox_secret" in value for value in variables.values())


def test_the_users_time_zone_wins() -> None:
    variables = guest.agent_environment(context(user_timezone="UTC", environment={"TZ": "Asia/Tokyo"}), VIEW)
    assert "TZ" not in variables


def test_what_is_absent_is_not_set() -> None:
    variables = guest.agent_environment(context(), VIEW)
    assert not any("ARTIFACT" in name or "MEMORY" in name or "RESUME" in name for name in variables)
    assert "VM0_API_START_TIME" not in variables


def test_the_payload_is_what_the_agent_reads() -> None:
    given = context(
        prompt='quo"te\n\U0001f600', environment={"A": "é"}, secret_values=("s",), tools=(),
        disallowed_tools=("x", "y"), append_system_prompt="more", settings="{}",
    )  # fmt: skip
    seen = guest_payload.parse(guest.payload(given))
    assert (seen.prompt, seen.environment, seen.secret_values) == (given.prompt, {"A": "é"}, ("s",))
    assert (seen.tools, seen.disallowed_tools) == ((), ("x", "y"))
    assert (seen.append_system_prompt, seen.settings) == ("more", "{}")


def test_the_manifest_has_the_guests_paths_and_the_urls_as_they_were() -> None:
    manifest = StorageManifest(storages=(ENTRY, ENTRY), artifact=ENTRY)
    seen = codec.loads(StorageManifest, guest.guest_manifest(manifest, VIEW))
    assert seen.artifact is not None and seen.memory is None
    for entry in (*seen.storages, seen.artifact):
        assert entry.mount_path == VIEW.guest_path("/work/a_b.c")
        assert entry.archive_url == ENTRY.archive_url
    assert json.loads(guest.guest_manifest(StorageManifest(), VIEW)) == {"storages": []}


def test_the_session_is_where_the_agent_looks_for_it() -> None:
    for home, environment in ((VIEW.guest_path("/home/user"), {}), ("/elsewhere", {"HOME": "/elsewhere"})):
        path = guest.session_file(context(environment=environment), "abc", VIEW)
        assert path == f"{project_folder(home, VIEW.guest_path('/work/a_b.c'))}/abc.jsonl"
