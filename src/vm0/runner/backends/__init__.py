"""The only door to a sandbox backend: which one, and what virtual machines start from.

`choice` picks; `qemu` finds its image and makes it; `snapshots` is the store of stopped VMs that it restores.
"""

from __future__ import annotations

from vm0.runner.backends.choice import NAME_PROCESS, make_factory
from vm0.runner.backends.errors import ImageMissing

__all__ = ["NAME_PROCESS", "ImageMissing", "make_factory"]
