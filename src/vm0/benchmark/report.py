"""The numbers as a document for programs and a table for people, with the targets they are held against. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vm0.benchmark.measure import AT_ONCE, MEMORY_MIB, VCPUS, Samples


@dataclass(frozen=True, slots=True)
class Target:
    """A limit on one number of the document; `name` is its path in it."""

    name: str
    limit: float
    unit: str
    at_most: bool = True

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    @property
    def words(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g} {self.unit}".rstrip()


# On two processors under emulation; with hardware virtualisation all of them are easy.
TARGETS = (
    Target("cold_boot_s.p50", 6.0, "s"),
    Target("restore_first_answer_s.p50", 0.15, "s"),
    Target("restore_speedup", 25.0, "", at_most=False),
    Target("restore_first_exec_s.p50", 0.4, "s"),
    Target("clone_pss_mib", 70.0, "MiB"),
)


def document(samples: Samples, machine: Mapping[str, Any]) -> dict[str, Any]:
    """JSON. Times are seconds with the unit in their name, each as {p50, p95, n}."""
    cold, restore = spread(samples.cold_boot), spread(samples.restore)
    found: dict[str, Any] = {
        "cold_boot_s": cold,
        "restore_first_answer_s": restore,
        "restore_first_exec_s": spread(samples.restore_exec),
        "exec_s": spread(samples.exec),
        "clone_pss_mib": round(samples.pss_of_eight["total"], 1),
        "clone_pss_alone_mib": round(samples.pss_alone["total"], 1),
        "accelerator": samples.facts.get("accelerator", ""),
        "restore_speedup": round(cold["p50"] / restore["p50"], 1),
        "create_s": spread(samples.create),
        "destroy_s": spread(samples.destroy),
        "first_exec_s": spread(samples.first_exec),
        "tenth_exec_s": spread(samples.tenth_exec),
        "cold_boot_first_exec_s": spread(samples.cold_first_exec),
        f"restore_{AT_ONCE}_at_once_s": spread(samples.burst),
        "cycles_per_minute": round(60 / statistics.fmean(samples.cycle), 1),
        "fork_s": spread(samples.fork),
        "file_in_mb_s": round(statistics.median(samples.file_in), 1),
        "file_out_mb_s": round(statistics.median(samples.file_out), 1),
        "clone_pss_parts_mib": _rounded(samples.pss_alone),
        f"clone_pss_of_{AT_ONCE}_parts_mib": _rounded(samples.pss_of_eight),
        "restore_steps_s": {name: spread(seconds) for name, seconds in samples.restore_steps.items()},
        "memory_mib": MEMORY_MIB,
        "vcpus": VCPUS,
        "backend": dict(samples.facts),
        "machine": dict(machine),
    }
    found["targets"] = {target.name: verdict(target, found) for target in TARGETS}
    return found


def verdict(target: Target, found: Mapping[str, Any]) -> dict[str, Any]:
    value = value_at(found, target.name)
    return {"target": target.words, "value": value, "met": target.met(value)}


def table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of name, p50, p95, n, target; the first is the header."""
    targets = {target.name.partition(".")[0]: target for target in TARGETS}
    rows: list[tuple[str, ...]] = [("", "P50", "P95", "N", "TARGET")]
    for name, words in ROWS.items():
        value = found[name]
        target = targets.get(name)
        last = "-"
        if target is not None:
            last = f"{target.words}: {'met' if found['targets'][target.name]['met'] else 'MISSED'}"
        if isinstance(value, Mapping):
            cells = (_seconds(value["p50"]), _seconds(value["p95"]), str(value["n"]))
        else:
            cells = (f"{value:g}{UNITS.get(name, '')}", "", "")
        rows.append((words, *cells, last))
    return rows


ROWS = {
    "cold_boot_s": "cold boot to first answer",
    "cold_boot_first_exec_s": "cold boot and first command",
    "create_s": "seat: namespace, disk",
    "restore_first_answer_s": "restore to first answer",
    "restore_speedup": "  times faster than cold boot",
    "restore_first_exec_s": "restore and first command",
    "first_exec_s": "  the first command alone",
    "tenth_exec_s": "  the tenth",
    "exec_s": "a command, later",
    f"restore_{AT_ONCE}_at_once_s": f"{AT_ONCE} restores at once, all answer",
    "destroy_s": "destroy",
    "cycles_per_minute": "create, start, destroy",
    "fork_s": "fork to first answer",
    "file_in_mb_s": "64 MiB into the VM",
    "file_out_mb_s": "64 MiB out of the VM",
    "clone_pss_mib": f"memory of each of {AT_ONCE} idle clones (PSS)",
    "clone_pss_alone_mib": "memory of a clone that shares with none",
}
UNITS = {
    "restore_speedup": " ×", "cycles_per_minute": " /min", "file_in_mb_s": " MB/s", "file_out_mb_s": " MB/s",
    "clone_pss_mib": " MiB",
    "clone_pss_alone_mib": " MiB",
}  # fmt: skip


def value_at(found: Mapping[str, Any], path: str) -> float:
    value: Any = found
    for name in path.split("."):
        value = value[name]
    return float(value)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and how many. Raises ValueError for none."""
    if not seconds:
        raise ValueError("nothing was measured")
    ordered = sorted(seconds)
    return {
        "p50": _digits(statistics.median(ordered)),
        "p95": _digits(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]),
        "n": len(ordered),
    }


def _digits(number: float) -> float:
    """Four: more would pretend precision."""
    return float(f"{number:.4g}")


def _rounded(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in parts.items()}


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
