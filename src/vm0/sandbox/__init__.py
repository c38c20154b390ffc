"""The contract between the runner and a sandbox backend: types, states, errors, and the suite a backend must pass.

Nothing here does I/O. One life of a sandbox::

    factory.create(config)          start()                stop() / kill()          factory.destroy(sandbox)
          │                            │                          │                           │
          ▼                            ▼                          ▼                           ▼
       CREATED ──── start ───────▶ RUNNING ──── stop, kill ──▶ STOPPED ─────────────▶ nothing is left on the host
          │                         │    ▲                        ▲
          └── start fails ─▶ STOPPED│    └─ resume ─┐             │
                                    ├─ quiesce ─▶ QUIESCED ───────┤
                                    ├─ pause ───▶ PAUSED ─────────┤   (virtual machines only; unpause leads back)
                                    │                             │
                                    └── it dies ──▶ CRASHED ── stop, kill
"""

from __future__ import annotations

from vm0.sandbox.api import Forking, OutputStream, Process, Sandbox, SandboxFactory, VirtualMachine
from vm0.sandbox.errors import (
    BackendUnavailable,
    InvalidStateError,
    Reason,
    SandboxError,
    SandboxOperationError,
    StartError,
)
from vm0.sandbox.state import State, next_state
from vm0.sandbox.types import (
    ApiAccess,
    DirectoryEntry,
    Ended,
    ExecRequest,
    ExecResult,
    FileKind,
    FileStat,
    IsolationTier,
    PtySize,
    RestoreRequest,
    SandboxConfig,
    SourceAddress,
    StreamResult,
    UnixSocket,
)

__all__ = [
    "ApiAccess",
    "BackendUnavailable",
    "DirectoryEntry",
    "Ended",
    "ExecRequest",
    "ExecResult",
    "FileKind",
    "FileStat",
    "Forking",
    "InvalidStateError",
    "IsolationTier",
    "OutputStream",
    "Process",
    "PtySize",
    "Reason",
    "RestoreRequest",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxFactory",
    "SandboxOperationError",
    "SourceAddress",
    "StartError",
    "State",
    "StreamResult",
    "UnixSocket",
    "VirtualMachine",
    "next_state",
]
