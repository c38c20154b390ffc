"""vm0: runs of AI coding agents, each in a microVM of its own.

One sub-package per component; `tests/architecture/dependencies.py` says which may import which.
"""

from __future__ import annotations

__version__ = "0.1.0"
