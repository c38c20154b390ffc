"""Tables and JSON on stdout, the same on a terminal and in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns by their widest cell; the last one is not padded."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip().encode(errors="backslashreplace").decode())


def print_facts(facts: dict[str, str]) -> None:
    """One line each, values in one column."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}".encode(errors="backslashreplace").decode())


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
