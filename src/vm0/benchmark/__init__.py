"""Measures virtual machines: how long they take to start, to answer and to be multiplied, and what they cost.

`measure` takes the numbers from factories that the caller enters; `report` makes a document and a table of them.
"""

from __future__ import annotations

from vm0.benchmark.measure import MEMORY_MIB, VCPUS, Effort, Samples, measure
from vm0.benchmark.report import TARGETS, document, table

__all__ = ["MEMORY_MIB", "TARGETS", "VCPUS", "Effort", "Samples", "document", "measure", "table"]
