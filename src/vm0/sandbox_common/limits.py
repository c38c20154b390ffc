"""Limits that all backends keep."""

from __future__ import annotations

import re

from vm0.sandbox import SandboxError

MAX_SOCKET_PATH = 107  # bytes of sun_path without its terminating NUL
SANDBOX_ID = r"[A-Za-z0-9-]{1,64}"  # what Firecracker's jailer takes, too


def check_sandbox_id(sandbox_id: str) -> None:
    """Ids become parts of paths, so they are checked where a sandbox is made, whoever chose them."""
    if not re.fullmatch(SANDBOX_ID, sandbox_id):
        raise SandboxError(f"sandbox id {sandbox_id!r} is not 1 to 64 letters, digits and hyphens")
