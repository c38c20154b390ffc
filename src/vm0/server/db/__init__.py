"""SQLite: one writer thread, a few readers, queries grouped by noun. Only this package speaks SQL."""

from __future__ import annotations
