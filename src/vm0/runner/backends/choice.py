"""Which backend. What it needs is imported when it is chosen, not before."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

from vm0.runner.config import RunnerConfig
from vm0.sandbox import BackendUnavailable, SandboxFactory

log = logging.getLogger("vm0.runner.backends")

NAME_PROCESS = "name it with `--backend process` to run agents as plain local processes; that isolates nothing"

Say = Callable[[str], None]


def make_factory(config: RunnerConfig, say: Say = log.info) -> SandboxFactory:
    """The factory of the configured backend; it tells `say` of what takes long when it is entered.

    `auto` is the strongest backend with virtual machines that works here, never `process`. Quick: nothing is built.
    Raises BackendUnavailable with the next step.
    """
    match config.backend:
        case "process":
            return _process_factory(config)
        case "auto" | "qemu":
            return _qemu_factory(config, say)
        case name:
            raise BackendUnavailable(f"backend {name} is not part of this version", hint=NAME_PROCESS)


def _process_factory(config: RunnerConfig) -> SandboxFactory:
    if importlib.util.find_spec("vm0.sandbox_process") is None:
        raise BackendUnavailable("backend process is not part of this installation", hint="reinstall vm0")
    from vm0.sandbox_process.factory import ProcessSandboxFactory

    factory: SandboxFactory = ProcessSandboxFactory(config.state_dir / "process")
    return factory


def _qemu_factory(config: RunnerConfig, say: Say) -> SandboxFactory:
    from vm0.runner.backends import qemu

    try:
        return qemu.make_factory(config, say)
    except BackendUnavailable as exc:
        missing = "" if config.backend == "qemu" else "no backend with virtual machines is available: "
        hint = exc.hint if "--backend process" in exc.hint else f"{exc.hint}; or {NAME_PROCESS}"
        raise type(exc)(f"{missing}{exc}", hint=hint) from exc
