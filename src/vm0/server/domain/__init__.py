"""The rules of the queue, pure: no I/O, no clock of its own. Each decision is a function of a run's state and now."""

from __future__ import annotations
