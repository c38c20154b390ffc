"""Errors of the contract: which operation failed (`operation`) apart from why (`reason`, a closed set)."""

from __future__ import annotations

import enum


class Reason(enum.Enum):
    """Why a sandbox operation failed; low-cardinality, safe as a metric label."""

    GUEST = "guest"  # the guest answered with an error: no such file, no such user, refused
    CRASHED = "crashed"  # the guest or its VMM is gone
    TIMEOUT = "timeout"  # no answer within the limit; whether it was done is unknown
    PROTOCOL = "protocol"  # the peer sent something illegal; the link is closed
    STATE = "state"  # not allowed in this state
    HOST = "host"  # the host side failed: disk, memory, permission


class SandboxError(Exception):
    """a sandbox failed"""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.hint = hint


class BackendUnavailable(SandboxError):
    """this host cannot run the backend; the hint says what is missing"""


class StartError(SandboxError):
    """a sandbox did not start; nothing of it is left. `step` names the start-up step, `log_tail` is its last output."""

    def __init__(self, step: str, detail: str, *, log_tail: str = "", hint: str = "") -> None:
        message = f"sandbox start failed at step {step}: {detail}"
        super().__init__(f"{message}\n{log_tail}".rstrip() if log_tail else message, hint=hint)
        self.step, self.log_tail = step, log_tail


class InvalidStateError(SandboxError):
    """the operation is not allowed in the sandbox's state"""

    reason = Reason.STATE

    def __init__(self, operation: str, state: str) -> None:
        super().__init__(f"sandbox cannot {operation} while {state}")
        self.operation, self.state = operation, state


class SandboxOperationError(SandboxError):
    """an operation of a running sandbox failed. `code` is the guest's own word for it (`not_found`), if it gave one."""

    def __init__(self, operation: str, reason: Reason, detail: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(f"sandbox {operation} failed ({reason.value}): {detail}", hint=hint)
        self.operation, self.reason, self.detail, self.code = operation, reason, detail, code
