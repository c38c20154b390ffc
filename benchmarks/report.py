"""What is made of the measurements: a table for people, `latest.json` for programs, and the table in the
documentation.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from benchmarks.measurement import Measurement, significant

FOLDER = pathlib.Path(__file__).parent
LATEST = FOLDER / "results" / "latest.json"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end of results -->"
COLUMNS = ("name", "ours", "baseline", "ratio", "target", "n")


def cells(measurement: Measurement) -> tuple[str, ...]:
    """One row, by COLUMNS."""
    target = "-"
    if measurement.target is not None:
        target = f"{measurement.target.text()} {'met' if measurement.ok else 'MISSED'}"
    return (
        measurement.name,
        f"{shown(measurement.value)} {measurement.unit}",
        f"{shown(measurement.baseline)} {measurement.unit}",
        f"{measurement.ratio:.2f}",
        target,
        str(measurement.samples),
    )


def table(measurements: Sequence[Measurement]) -> str:
    """For a terminal."""
    rows = [COLUMNS, *(cells(measurement) for measurement in measurements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_json(path: pathlib.Path, measurements: Sequence[Measurement], *, keep_others: bool = False) -> None:
    """Replaces the file as a whole; `keep_others` keeps the lines in it of what was not measured now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    lines = [measurement.as_json() for measurement in measurements]
    if keep_others and path.exists():
        measured = {measurement.name for measurement in measurements}
        others = json.loads(path.read_text(encoding="utf-8"))
        lines = [*(line for line in others if line["name"] not in measured), *lines]
    temporary.write_text(json.dumps(lines, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_page(path: pathlib.Path, measurements: Sequence[Measurement], machine: Mapping[str, str]) -> None:
    """Replaces what is between the two markers; the text around it is written by hand."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the line {BEGIN!r} or {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{results_section(measurements, machine)}\n{END}{after}", encoding="utf-8")


def results_section(measurements: Sequence[Measurement], machine: Mapping[str, str]) -> str:
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in machine.items()), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for measurement in measurements:
        name, *rest = cells(measurement)
        lines.append(f"| {' | '.join((f'`{name}`', *rest))} |")
    lines += ["", "Baselines:", ""]
    lines += [f"- `{measurement.name}`: {measurement.against}" for measurement in measurements]
    return "\n".join(lines) + "\n"


def shown(number: float) -> str:
    """Short, and never in powers of ten."""
    return f"{significant(number):,.4g}" if number < 10_000 else f"{round(number):,}"
