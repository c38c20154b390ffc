"""What the environment says to the `vm0` command; read once, at the start of a command."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field

VARIABLES = {
    "VM0_HOME": "state directory (default `/var/lib/vm0` for root, else `~/.local/state/vm0`)",
    "VM0_SERVER_URL": "URL of the server to use, as `--server`",
    "VM0_TOKEN": "token for that server; `--token-file` is read first",
    "NO_COLOR": "any value: no colours and no moving lines",
    "TERM": "`dumb`: no colours and no moving lines",
}

SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")


class Secret(str):
    """Text that does not show itself in a `repr`, so that it stays out of logs and tracebacks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The environment of one call. `variables` is all of it, for `--env NAME`."""

    state_dir: pathlib.Path
    server_url: str
    token: Secret
    plain: bool  # no colours, no moving lines
    variables: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        variables = dict(os.environ) if environment is None else dict(environment)
        return cls(
            state_dir=state_dir(variables),
            server_url=variables.get("VM0_SERVER_URL", ""),
            token=Secret(variables.get("VM0_TOKEN", "")),
            plain=bool(variables.get("NO_COLOR")) or variables.get("TERM") == "dumb",
            variables=variables,
        )


def state_dir(variables: Mapping[str, str]) -> pathlib.Path:
    """Where server and runner of this user keep their state; made on first use."""
    if named := variables.get("VM0_HOME"):
        return pathlib.Path(named).absolute()
    if os.geteuid() == 0:
        return pathlib.Path("/var/lib/vm0")
    base = variables.get("XDG_STATE_HOME") or os.path.join(variables.get("HOME") or "/tmp", ".local/state")
    return pathlib.Path(base) / "vm0"


def complete_path() -> None:
    """Let this process find the programs of root, too: `su` without `-` leaves a PATH that lacks their folders."""
    found = os.environ.get("PATH", "").split(":")
    os.environ["PATH"] = ":".join([*filter(None, found), *(path for path in SYSTEM_PATH if path not in found)])
