"""The network of each VM: a namespace of its own, with a tap and a link to the host, from a pool of prepared ones."""

from __future__ import annotations

from vm0.microvm.netns.errors import NamespaceError
from vm0.microvm.netns.namespace import Namespace
from vm0.microvm.netns.pool import NamespacePool

__all__ = ["Namespace", "NamespaceError", "NamespacePool"]
