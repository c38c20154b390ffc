"""`python -m benchmarks`: measure, print a table, write `benchmarks/results/latest.json`.

A complete run (neither --only nor --quick, nothing failed) also replaces the result table of docs/benchmarks.md. Exit
codes: 0 all was measured, whether the targets are met or not; 1 something could not be measured; 2 usage.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import sys
import time
from collections.abc import Sequence

from benchmarks import machine, report
from benchmarks.catalogue import NAMES, Benchmark, selected
from benchmarks.measurement import Effort, Measurement

QUICK_SCALE = 0.1
LIMIT_S = 600.0  # of one benchmark: a hang must not look like a slow one


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed(argv)
    if options.list:
        for benchmark in selected(options.only):
            print(f"{', '.join(benchmark.names)}\n\n{benchmark.description()}\n\n")
        return 0
    whole = not options.only and not options.quick
    facts = machine.fingerprint() | {"load before": machine.load()}
    print("\n".join(f"{name:12} {text}" for name, text in facts.items()), end="\n\n", flush=True)
    effort = Effort(QUICK_SCALE if options.quick else 1.0)
    begun = time.monotonic()
    measurements, failed = asyncio.run(measured(selected(options.only), effort))
    seconds = time.monotonic() - begun
    facts |= {"load after": machine.load(), "took": f"{seconds:.0f} s"}
    print(f"\n{report.table(measurements)}\n\ntook {seconds:.0f} s, load after {facts['load after']}")
    if measurements:
        report.write_json(options.output, measurements, keep_others=bool(options.only))
        print(f"written to {options.output}")
    if whole and not failed and report.PAGE.exists():
        report.write_page(report.PAGE, measurements, facts)
        print(f"and to {report.PAGE}")
    return 1 if failed else 0


async def measured(benchmarks: Sequence[Benchmark], effort: Effort) -> tuple[list[Measurement], bool]:
    """All measurements, and whether any benchmark failed; one that fails does not keep the others from running."""
    measurements: list[Measurement] = []
    failed = False
    for benchmark in benchmarks:
        print(f"{', '.join(benchmark.names)} ...", end=" ", flush=True)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT_S):
                measurements += await benchmark.run(effort)
        except Exception as exc:
            failed = True
            print(f"FAILED: {exc!r}", flush=True)
        else:
            print(f"{time.monotonic() - begun:.0f} s", flush=True)
    return measurements, failed


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure vm0 against named baselines.")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=NAMES,
        metavar="NAME",
        help=f"may repeat: {', '.join(NAMES)}",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: rougher numbers in under 2 minutes")
    parser.add_argument(
        "--output", type=pathlib.Path, default=report.LATEST, metavar="FILE", help="where the JSON goes"
    )
    parser.add_argument("--list", action="store_true", help="say what each benchmark measures, and do nothing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
