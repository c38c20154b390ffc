"""What `vm0 run` was asked to do: the options, and the pure step from their texts to the parts of a run request."""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vm0.cli.errors import UsageError
from vm0.contracts import names
from vm0.contracts.codec import ContractError
from vm0.contracts.runs import AgentKind, Isolation, RunRequest, StorageMount

MAX_NAME_STEM = 100  # of a storage name's 128 characters; the rest is for the hash


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The command line of `vm0 run`, as it was given."""

    prompt: str
    agent: str = "claude-code"
    artifact: str = ""
    storages: Sequence[str] = ()
    env: Sequence[str] = ()
    secrets: Sequence[str] = ()
    timeout_s: int = names.DEFAULT_TIMEOUT_SECONDS
    resume: str = ""
    output: pathlib.Path | None = None
    backend: str = "auto"
    image: str = ""
    offline: bool = False
    yes: bool = False
    isolation: str | None = None
    workdir: str = ""
    group: str = names.DEFAULT_GROUP
    server: str = ""
    token_file: pathlib.Path | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class FolderMount:
    """A local folder and where its copy is in the sandbox."""

    folder: pathlib.Path
    mount_path: str


def folder_mount(text: str, option: str, default_mount: str = "") -> FolderMount:
    """`DIR[:MOUNT]`. The last colon separates if an absolute path follows it, so DIR may hold colons."""
    folder, colon, mount = text.rpartition(":")
    if not colon or not mount.startswith("/"):
        folder, mount = text, default_mount
    if not folder or not mount:
        raise UsageError(f"{option} {text!r} has no {'folder' if not folder else 'mount path'}", hint=_shape(option))
    if not re.fullmatch(names.ABSOLUTE_PATH, mount):
        raise UsageError(f"{option}: {mount!r} must be {names.ABSOLUTE_PATH_MEANS}")
    return FolderMount(pathlib.Path(folder), mount)


def _shape(option: str) -> str:
    return f"write {option} DIR:MOUNT, for example {option} ./data:/home/user/data"


def variables(texts: Sequence[str], option: str, caller: Mapping[str, str]) -> dict[str, str]:
    """`K=V` as it stands; `K` takes the caller's value. The last one of a name wins, as in a shell."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not re.fullmatch(names.ENV_NAME, name):
            raise UsageError(f"{option}: the name must be {names.ENV_NAME_MEANS}", hint=f"write {option} NAME=VALUE")
        if not separator and name not in caller:
            raise UsageError(f"{option} {name}: your environment has no {name}", hint=f"write {option} {name}=VALUE")
        found[name] = value if separator else caller[name]
    return found


def storage_name(folder: pathlib.Path) -> str:
    """The name of a folder's storage: the same folder has the same one, and two folders never share one.

    The readable part is the folder's own name; the hash is of its real path, so that runs on one folder make versions
    of one storage.
    """
    real = folder.resolve()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", real.name)[:MAX_NAME_STEM].strip("-.") or "folder"
    if not re.match(r"[A-Za-z0-9]", stem):
        stem = f"f{stem}"
    return f"{stem}-{hashlib.sha256(str(real).encode(errors='surrogateescape')).hexdigest()[:8]}"


def run_request(
    options: RunOptions,
    *,
    prompt: str,
    group: str,
    caller: Mapping[str, str],
    artifact: StorageMount | None,
    storages: Sequence[StorageMount],
    resume_run_id: str | None,
) -> RunRequest:
    """The body of `POST /api/runs`; raises UsageError in the words of the command line."""
    from vm0.contracts.codec import decode, encode

    try:
        return decode(
            RunRequest,
            {
                "prompt": prompt,
                "cliAgentType": AgentKind(options.agent).value,
                "group": group,
                "workingDir": options.workdir or (artifact.mount_path if artifact is not None else None),
                "environment": variables(options.env, "--env", caller),
                "secrets": variables(options.secrets, "--secret", caller),
                "storages": encode(tuple(storages)),
                "artifact": encode(artifact) if artifact is not None else None,
                "resumeRunId": resume_run_id,
                "timeoutSeconds": options.timeout_s,
                "isolation": Isolation(options.isolation).value if options.isolation else None,
            },
        )
    except ContractError as exc:
        raise _in_words_of_the_command_line(exc) from None


OPTION_OF_FIELD = {
    "prompt": "the prompt",
    "environment": "--env",
    "secrets": "--secret",
    "timeoutSeconds": "--timeout",
    "storages": "--storage",
    "artifact": "--artifact",
    "group": "--group",
    "resumeRunId": "--resume",
    "workingDir": "--workdir",
}


def _in_words_of_the_command_line(exc: ContractError) -> UsageError:
    head = re.split(r"[.\[]", exc.path, maxsplit=1)[0]
    what = OPTION_OF_FIELD.get(head, exc.path)
    name = exc.path.partition(".")[2]
    if head in ("environment", "secrets") and name:
        what = f"{what} {name}"
    hint = ""
    if head == "prompt":
        hint = "put long input into a file of the --artifact folder and name it in the prompt"
        if "empty" in exc.reason:
            hint = "say what the agent shall do: vm0 run [OPTIONS] PROMPT"
        elif "NUL" in exc.reason or "surrogate" in exc.reason:
            hint = "the prompt must be UTF-8 text; put binary data into a file of the --artifact folder"
    return UsageError(f"{what} {exc.reason}", hint=hint)
