"""The runner's settings: a TOML file, over it the environment, over that command-line flags; checked once, at start.

Key `poll_wait_s` of the file is `VM0_RUNNER_POLL_WAIT_S` in the environment, and `start_s` of its table `[limits]` is
`VM0_RUNNER_LIMITS_START_S`. Two names are shared with other components: `VM0_SERVER_URL` and `VM0_FAILPOINTS`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import tomllib
import typing
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vm0.contracts import names
from vm0.runner.errors import RunnerError
from vm0.runner.failpoints import Failpoints

BACKENDS = ("auto", "process", "qemu", "firecracker")
ACCELERATORS = ("auto", "kvm", "tcg")
ENV_PREFIX = "VM0_RUNNER_"
SHARED_ENV = {"server_url": "VM0_SERVER_URL", "failpoints": "VM0_FAILPOINTS"}
SWITCH_WORDS = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
MEMORY_PER_RUN_BYTES = 512 * 1024 * 1024  # of the automatic max_concurrent: what a default sandbox may take


class ConfigError(RunnerError):
    """a setting is wrong; `key` names it as the file does"""

    def __init__(self, key: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{key}: {reason}", hint=hint or f"set it in the file, by {env_name(key)} or by its flag")
        self.key = key


class Secret(str):
    """Text that never shows itself in a log or a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLimits:
    """How long each phase of a run may take, in seconds. The agent's own limit is the run's `timeoutSeconds`."""

    create_s: float = 60.0
    start_s: float = 180.0
    bridge_s: float = 10.0
    storages_s: float = 900.0
    session_s: float = 180.0
    payload_s: float = 60.0
    agent_start_s: float = 60.0
    agent_grace_s: float = 20.0  # SIGTERM to SIGKILL: the guest agent flushes events and its outcome in it
    agent_margin_s: float = 10.0  # after that, the sandbox is killed from the host
    outcome_s: float = 15.0
    logs_s: float = 30.0
    report_s: float = 20.0  # then the report goes on in the background and the sandbox is destroyed
    destroy_s: float = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 < getattr(self, field.name) <= 86_400:
                raise ConfigError(f"limits.{field.name}", "must be more than 0 and at most 86400 seconds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """All the runner needs to know. Constructing one checks it; `load` reads file, environment and flags."""

    server_url: str
    token: Secret = dataclasses.field(repr=False)
    state_dir: Path = dataclasses.field(default_factory=lambda: default_state_dir())
    group: str = names.DEFAULT_GROUP
    name: str = dataclasses.field(default_factory=lambda: socket.gethostname()[:128])
    backend: str = "auto"
    image: str = "base"  # what virtual machines start from: a recipe's name or file, or an image's key
    images_dir: Path = dataclasses.field(default_factory=lambda: default_home() / "images")  # `vm0 setup` fills it
    snapshots_dir: Path = dataclasses.field(default_factory=lambda: default_home() / "snapshots")
    snapshot: bool = True  # restore from a snapshot, made at the start if it is missing; false: boot every sandbox
    accelerator: str = "auto"  # auto: `kvm` if a probe guest boots with it, else `tcg`, which is emulation
    max_concurrent: int = 0  # 0: as many as the processors and the memory of this host allow
    sandbox_vcpus: int = 1
    sandbox_memory_mib: int = 512
    sandbox_disk_mib: int = 2048
    poll_wait_s: float = 20.0  # how long the server may hold an empty poll
    poll_retry_min_s: float = 0.5
    poll_retry_max_s: float = 30.0
    heartbeat_s: float = 30.0
    shutdown_report_s: float = 10.0  # how long a stopping runner tries to deliver what it still has to report
    log_limit_bytes: int = 8 * 1024 * 1024  # of each log file of a run on this host
    kept_logs: int = 400  # newest log files that stay
    limits: PhaseLimits = PhaseLimits()
    failpoints: Failpoints = dataclasses.field(default_factory=Failpoints)

    def __post_init__(self) -> None:
        object.__setattr__(self, "server_url", _checked_url(self.server_url))
        object.__setattr__(self, "token", Secret(self.token))
        # Resolved, because guests see paths below it: an agent's working directory must have one name only.
        for key in ("state_dir", "images_dir", "snapshots_dir"):
            object.__setattr__(self, key, Path(getattr(self, key)).expanduser().resolve())
        if not re.fullmatch(r"[\x21-\x7e]+", self.token):
            reason = "holds characters no token has" if self.token else "is missing"
            raise ConfigError("token", reason, hint="make one with `vm0 token create --kind runner`")
        if not re.fullmatch(names.GROUP, self.group) or len(self.group) > 128:
            raise ConfigError("group", f"must be {names.GROUP_MEANS}")
        if not self.name.isprintable() or len(self.name) > 128:
            raise ConfigError("name", "must be at most 128 printable characters")
        if self.backend not in BACKENDS:
            raise ConfigError("backend", f"must be one of {', '.join(BACKENDS)}")
        if self.accelerator not in ACCELERATORS:
            raise ConfigError("accelerator", f"must be one of {', '.join(ACCELERATORS)}")
        if self.max_concurrent == 0:
            object.__setattr__(self, "max_concurrent", automatic_concurrency())
        self._check_numbers()

    def _check_numbers(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "max_concurrent": (1, 10_000),
            "sandbox_vcpus": (1, 64),
            "sandbox_memory_mib": (64, 1024 * 1024),
            "sandbox_disk_mib": (64, 16 * 1024 * 1024),
            "poll_wait_s": (0, 30),
            "poll_retry_min_s": (0.001, 60),
            "poll_retry_max_s": (self.poll_retry_min_s, 600),
            "heartbeat_s": (0.01, 240),
            "shutdown_report_s": (0, 600),
            "log_limit_bytes": (4096, 1 << 34),
            "kept_logs": (0, 100_000),
        }
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise ConfigError(key, f"must be between {low:g} and {high:g}")

    @classmethod
    def load(
        cls,
        *,
        file: Path | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
        defaults: Mapping[str, object] | None = None,
    ) -> RunnerConfig:
        """Flags (None: not given) over environment over file over defaults. Raises ConfigError."""
        found = {**(defaults or {}), **_file_settings(file)}
        found |= _env_settings(os.environ if env is None else env)
        found |= {key: value for key, value in (flags or {}).items() if value is not None}
        limits: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for key, value in found.items():
            if key not in SETTINGS:
                raise ConfigError(key, "is not a setting", hint=f"known: {', '.join(sorted(SETTINGS))}")
            value = _converted(key, SETTINGS[key], value)
            table, _, name = key.rpartition(".")
            (limits if table == "limits" else rest)[name] = value
        for key in ("server_url", "token"):
            if key not in rest:
                raise ConfigError(key, "is not set")
        return cls(**rest, limits=PhaseLimits(**limits))


def _settings() -> dict[str, type]:
    hints = typing.get_type_hints(RunnerConfig)
    found = {field.name: hints[field.name] for field in dataclasses.fields(RunnerConfig) if field.name != "limits"}
    return found | {f"limits.{field.name}": float for field in dataclasses.fields(PhaseLimits)}


SETTINGS: dict[str, type] = _settings()  # every key that may be set, with the type of its value


def env_name(key: str) -> str:
    """The environment variable of a setting."""
    return SHARED_ENV.get(key) or ENV_PREFIX + key.upper().replace(".", "_")


def default_home() -> Path:
    return Path("/var/lib/vm0") if os.geteuid() == 0 else Path("~/.local/state/vm0").expanduser()


def default_state_dir() -> Path:
    return default_home() / "runner"


def automatic_concurrency() -> int:
    """Bounded by processors and by memory, and at least one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // MEMORY_PER_RUN_BYTES))


def _checked_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable, parts = False, urllib.parse.urlsplit("")
    if not usable:
        raise ConfigError("server_url", f"must be an http or https address, not {url!r}")
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigError("server_url", "must have no query, fragment or user name")
    return url.rstrip("/")


def _file_settings(file: Path | None) -> dict[str, object]:
    if file is None:
        return {}
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:  # ValueError: not TOML, or not UTF-8
        raise RunnerError(f"runner config {file}: {exc}", hint="it must be a readable TOML file") from None
    found: dict[str, object] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found


def _env_settings(env: Mapping[str, str]) -> dict[str, object]:
    known = {env_name(key): key for key in SETTINGS}
    found: dict[str, object] = {}
    for name, value in env.items():
        if name in known:
            found[known[name]] = value
        elif name.startswith(ENV_PREFIX):
            raise ConfigError(name, "is not a setting", hint=f"known: {', '.join(sorted(known))}")
    return found


def _switch(value: object) -> bool:
    """A TOML boolean, or a word in the environment."""
    found = value if isinstance(value, bool) else SWITCH_WORDS.get(str(value).lower())
    if found is None:
        raise ValueError(f"must be on or off, not {value!r}")
    return found


def _converted(key: str, kind: type, value: object) -> Any:
    try:
        if kind is Failpoints:
            return value if isinstance(value, Failpoints) else Failpoints.parse(str(value))
        if kind is bool:
            return _switch(value)
        if kind in (int, float):
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError(f"must be a number, not {value!r}")
            if kind is int and isinstance(value, float) and not value.is_integer():
                raise ValueError(f"must be a whole number, not {value!r}")
            return kind(value)
        if not isinstance(value, (str, Path)):
            raise ValueError(f"must be text, not {value!r}")
        return kind(value)
    except ValueError as exc:
        reason = str(exc)
        if kind in (int, float) and isinstance(value, str):
            reason = f"must be a {'whole ' if kind is int else ''}number, not {value!r}"
        raise ConfigError(key, reason) from None
