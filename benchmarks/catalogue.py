"""Every benchmark: its module, and the names of the numbers that it measures."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measurement import Effort, Measurement


@dataclass(frozen=True, slots=True)
class Benchmark:
    module: str
    names: tuple[str, ...]

    async def run(self, effort: Effort) -> list[Measurement]:
        """Its measurements, in the order of `names`."""
        found: list[Measurement] = await importlib.import_module(f"benchmarks.{self.module}").run(effort)
        if tuple(measurement.name for measurement in found) != self.names:
            raise RuntimeError(f"{self.module} measured {[m.name for m in found]} instead of {list(self.names)}")
        return found

    def description(self) -> str:
        """The module's docstring: exactly what is measured."""
        return inspect.getdoc(importlib.import_module(f"benchmarks.{self.module}")) or ""


BENCHMARKS = (
    Benchmark("ping", ("ping",)),
    Benchmark("command_direct", ("exec",)),
    Benchmark("command_ssh", ("exec_vs_asyncssh",)),
    Benchmark("file_copy", ("file_in", "file_out")),
    Benchmark("runs", ("runs", "runs_start", "runs_rss")),
    Benchmark("events", ("events",)),
    Benchmark("slow_api", ("slow_api",)),
    Benchmark("cold_start", ("vm0_help", "guest_start")),
    Benchmark(
        "virtual_machines",
        ("vm_cold_boot", "vm_restore", "vm_restore_exec", "vm_exec", "vm_pss", "vm_file_in", "vm_file_out"),
    ),
)
NAMES = tuple(name for benchmark in BENCHMARKS for name in benchmark.names)


def selected(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that measure any of these numbers; all for an empty list."""
    return [benchmark for benchmark in BENCHMARKS if not names or set(names) & set(benchmark.names)]
