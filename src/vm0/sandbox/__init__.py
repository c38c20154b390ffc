"""The contract between the runner and a sandbox backend: types, states, errors, and the suite a backend must pass.

Nothing here does I/O. One life of a sandbox::

    factory.create(config)          start()                stop() / kill()          factory.destroy(sandbox)
          │                            │                          │                           │
          ▼                            ▼                          ▼                           ▼
       CREATED ──── start ───────▶ RUNNING ──── stop, kill ──▶ STOPPED ─────────────▶ nothing is left on the host
          │                         │    ▲                        ▲
          └── start fails ─▶ STOPPED│    └─ resume ─┐             │
                                    └─ quiesce ─▶ QUIESCED ───────┤
                                    │                             │
                                    └── it dies ──▶ CRASHED ── stop, kill
"""

from __future__ import annotations

from vm0.sandbox.api import OutputStream, Process, Sandbox, SandboxFactory
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
    "next_state",
]
