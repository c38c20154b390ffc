"""Settings of the server: one dataclass, filled from the environment (`VM0_SERVER_*`) and the caller's overrides."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from vm0.server.errors import ServerError

ENV_PREFIX = "VM0_SERVER_"
DEFAULT_STATE_DIR = "~/.local/state/vm0/server"
MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Every setting has the unit in its name; `state_dir` holds all that the server keeps."""

    state_dir: pathlib.Path
    lease_ttl_s: float = 30.0  # a runner renews at a third of this
    object_url_ttl_s: int = 3600  # how long a signed URL may be used
    sandbox_token_margin_s: int = 3600  # a sandbox token outlives the run's time limit by this
    runner_forget_s: float = 300.0  # a runner not heard of for this long is not listed
    shutdown_grace_s: float = 10.0  # for requests under way when the server stops
    reader_threads: int = 4
    max_object_bytes: int = 10 * 1024 * MIB  # one archive
    max_system_log_bytes: int = 16 * MIB  # kept of one run; then a marker line, then nothing
    max_telemetry_records: int = 20_000  # kept of one run and stream (metrics, operations, network log)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "state_dir" and not 0 < value < float("inf"):
                raise ServerError(f"{field.name} must be greater than 0, not {value}")

    @property
    def database_path(self) -> pathlib.Path:
        return self.state_dir / "server.sqlite3"

    @property
    def objects_dir(self) -> pathlib.Path:
        return self.state_dir / "objects"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> ServerConfig:
        """Settings from `VM0_SERVER_<NAME>`; an override that is not None wins. Bad values name their variable."""
        env = os.environ if env is None else env
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {"state_dir": pathlib.Path(DEFAULT_STATE_DIR)}
        for field in dataclasses.fields(cls):
            key = ENV_PREFIX + field.name.upper()
            if env.get(key):
                try:
                    values[field.name] = hints[field.name](env[key])
                except ValueError:
                    raise ServerError(f"{key} must be a number, not {env[key]!r}") from None
        values.update({name: value for name, value in overrides.items() if value is not None})
        values["state_dir"] = pathlib.Path(values["state_dir"]).expanduser().absolute()
        return cls(**values)
