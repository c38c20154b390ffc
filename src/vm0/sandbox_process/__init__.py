"""The first backend: the guest endpoint as a plain local process with a work directory and environment of its own.

It isolates nothing: what runs in it can do whatever the runner's user can. It exists for tests and development, and the
runner takes it only when it is named.
"""

from __future__ import annotations

from vm0.sandbox_process.factory import ProcessSandboxFactory

__all__ = ["ProcessSandboxFactory"]
