"""The only door to a sandbox backend. What a backend needs is imported when it is chosen, not before."""

from __future__ import annotations

import importlib.util

from vm0.runner.config import RunnerConfig
from vm0.sandbox import BackendUnavailable, SandboxFactory

NAME_PROCESS = "name it with `--backend process` to run agents as plain local processes; that isolates nothing"


def make_factory(config: RunnerConfig) -> SandboxFactory:
    """The factory of the configured backend. Raises BackendUnavailable; `auto` never falls to `process`."""
    match config.backend:
        case "process":
            return _process_factory(config)
        case "auto":
            raise BackendUnavailable("no backend with virtual machines is available on this host", hint=NAME_PROCESS)
        case name:
            raise BackendUnavailable(f"backend {name} is not part of this version", hint=NAME_PROCESS)


def _process_factory(config: RunnerConfig) -> SandboxFactory:
    if importlib.util.find_spec("vm0.sandbox_process") is None:
        raise BackendUnavailable("backend process is not part of this installation", hint="reinstall vm0")
    from vm0.sandbox_process.factory import ProcessSandboxFactory

    factory: SandboxFactory = ProcessSandboxFactory(config.state_dir / "process")
    return factory
