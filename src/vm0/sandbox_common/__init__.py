"""What every backend shares on top of the contract: a sandbox whose work is done by a connected guest endpoint."""

from __future__ import annotations

from vm0.sandbox_common.guest_sandbox import GuestSandbox
from vm0.sandbox_common.limits import MAX_SOCKET_PATH, check_sandbox_id

__all__ = ["MAX_SOCKET_PATH", "GuestSandbox", "check_sandbox_id"]
