"""The HTTP routes, one module per audience."""

from __future__ import annotations
