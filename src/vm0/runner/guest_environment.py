"""What a guest is told about its run: pure functions from the execution context to environment, payload and manifest.

Every path goes through the sandbox's `guest_path`, because a backend without a file system of its own maps it. No
token is among all this: the guest reaches the API through the bridge, which adds it.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
from collections.abc import Callable
from typing import Any

from vm0.contracts import codec
from vm0.contracts.manifest import ManifestEntry, StorageManifest
from vm0.contracts.runner import ExecutionContext

HOME = "/home/user"
USER = "user"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIME_ROOT = "/tmp"
PAYLOAD_NAME = "payload.json"
MANIFEST_NAME = "storage-manifest.json"
OUTCOME_NAME = "outcome.json"
SYSTEM_LOG_NAME = "system.log"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestView:
    """What of a sandbox decides how its guest is addressed."""

    guest_path: Callable[[str], str]
    api_url: str
    mock_claude: tuple[str, ...]


def runtime_dir(run_id: str) -> str:
    """The run's private folder in the guest, in the run's own world: pass it through `guest_path`."""
    return f"{RUNTIME_ROOT}/vm0-run-{run_id}"


def runtime_file(view: GuestView, run_id: str, name: str) -> str:
    return view.guest_path(f"{runtime_dir(run_id)}/{name}")


def base_environment(context: ExecutionContext, view: GuestView) -> dict[str, str]:
    """What every guest program of the run gets."""
    environment = {
        "HOME": view.guest_path(HOME),
        "USER": USER,
        "LOGNAME": USER,
        "PATH": PATH,
        "VM0_RUN_ID": context.run_id,
        "VM0_API_URL": view.api_url,
        "VM0_RUNTIME_DIR": view.guest_path(runtime_dir(context.run_id)),
    }
    if context.user_timezone and "TZ" not in context.environment:  # the user's own choice wins
        environment["TZ"] = context.user_timezone
    return environment


def agent_environment(context: ExecutionContext, view: GuestView) -> dict[str, str]:
    """The environment of guest-agent. Items of variable size are in the payload file that it names."""
    environment = base_environment(context, view) | {
        "VM0_WORKING_DIR": view.guest_path(context.working_dir),
        "CLI_AGENT_TYPE": context.cli_agent_type.value,
        "VM0_PAYLOAD_FILE": runtime_file(view, context.run_id, PAYLOAD_NAME),
        "VM0_MOCK_CLAUDE_COMMAND": json.dumps(view.mock_claude),
    }
    if context.api_start_time is not None:
        environment["VM0_API_START_TIME"] = str(context.api_start_time)
    if context.resume_session is not None:
        environment["VM0_RESUME_SESSION_ID"] = context.resume_session.session_id
    manifest = context.storage_manifest or StorageManifest()
    environment |= _mount_environment("VM0_ARTIFACT", "VOLUME_NAME", manifest.artifact, view)
    environment |= _mount_environment("VM0_MEMORY", "NAME", manifest.memory, view)
    return environment


def _mount_environment(prefix: str, name_key: str, entry: ManifestEntry | None, view: GuestView) -> dict[str, str]:
    if entry is None:
        return {}
    return {
        f"{prefix}_DRIVER": "vas",
        f"{prefix}_MOUNT_PATH": view.guest_path(entry.mount_path),
        f"{prefix}_{name_key}": entry.vas_storage_name or "",
        f"{prefix}_VERSION_ID": entry.vas_version_id or "",
    }


def payload(context: ExecutionContext) -> bytes:
    """The private file with prompt, environment and secrets; guest-agent deletes it when it has read it."""
    fields: dict[str, Any] = {
        "prompt": context.prompt,
        "environment": context.environment,
        "secretValues": list(context.secret_values),
        "appendSystemPrompt": context.append_system_prompt,
        "tools": None if context.tools is None else list(context.tools),
        "disallowedTools": None if context.disallowed_tools is None else list(context.disallowed_tools),
        "settings": context.settings,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode("ascii")


def guest_manifest(manifest: StorageManifest, view: GuestView) -> bytes:
    """The manifest for guest-download, with the mount paths of this guest."""

    def mapped(entry: ManifestEntry) -> ManifestEntry:
        return dataclasses.replace(entry, mount_path=view.guest_path(entry.mount_path))

    return codec.dumps(
        StorageManifest(
            storages=tuple(mapped(entry) for entry in manifest.storages),
            artifact=None if manifest.artifact is None else mapped(manifest.artifact),
            memory=None if manifest.memory is None else mapped(manifest.memory),
        )
    )


def session_file(context: ExecutionContext, session_id: str, view: GuestView) -> str:
    """Where Claude Code looks for the history of a session: its folder is named after the working directory."""
    home = context.environment.get("HOME") or view.guest_path(HOME)
    folder = re.sub(r"[^A-Za-z0-9]", "-", view.guest_path(context.working_dir))
    return posixpath.join(home, ".claude", "projects", folder, f"{session_id}.jsonl")
