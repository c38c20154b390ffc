"""From samples to the document and the table."""

from __future__ import annotations

import json
import os

import pytest

from vm0.benchmark import TARGETS, Samples, document, table
from vm0.benchmark.measure import pss_mib
from vm0.benchmark.report import ROWS, Target, spread

PROMISED = {
    "cold_boot_s", "restore_first_answer_s", "restore_first_exec_s", "exec_s", "clone_pss_mib", "accelerator",
}  # fmt: skip
PSS = {"total": 61.23, "anonymous": 30.0, "files": 11.0, "snapshot": 20.23, "private": 48.0}


def samples(restore: float = 0.1) -> Samples:
    return Samples(
        facts={"accelerator": "tcg", "why": "no /dev/kvm"}, create=[0.001], cold_boot=[5.0, 5.2], cold_first_exec=[5.3],
        restore=[restore] * 30, restore_exec=[restore + 0.2], restore_steps={"spawn": [0.02]}, first_exec=[0.2],
        tenth_exec=[0.05], exec=[0.04, 0.05], destroy=[0.03], burst=[0.9], cycle=[0.2, 0.4], fork=[0.8],
        file_in=[20.0], file_out=[40.0], pss_alone=PSS, pss_of_eight=PSS,
    )  # fmt: skip


def test_the_document_has_what_is_promised() -> None:
    found = document(samples(), {"cpus": 2})
    assert found.keys() > PROMISED
    for name in PROMISED - {"clone_pss_mib", "accelerator"}:
        assert found[name].keys() == {"p50", "p95", "n"}
    assert (found["accelerator"], found["clone_pss_mib"]) == ("tcg", 61.2)
    assert found["restore_first_answer_s"] == {"p50": 0.1, "p95": 0.1, "n": 30}
    assert (found["restore_speedup"], found["cycles_per_minute"]) == (51.0, 200.0)
    assert json.loads(json.dumps(found)) == found


def test_targets_are_met_or_missed_by_their_number() -> None:
    met = document(samples(), {})["targets"]
    assert met.keys() == {target.name for target in TARGETS}
    assert all(verdict["met"] for verdict in met.values())
    missed = document(samples(restore=0.3), {})["targets"]
    assert {name for name, verdict in missed.items() if not verdict["met"]} == {
        "restore_first_answer_s.p50", "restore_speedup", "restore_first_exec_s.p50",
    }  # fmt: skip


def test_a_target_may_be_a_floor() -> None:
    assert Target("x", 25, "", at_most=False).met(25) and not Target("x", 25, "", at_most=False).met(24.9)
    assert Target("x", 25, "s").words == "≤ 25 s" and Target("x", 25, "", at_most=False).words == "≥ 25"


def test_the_table_shows_every_row_and_every_target() -> None:
    header, *rows = table(document(samples(restore=0.3), {}))
    assert [row[0] for row in rows] == list(ROWS.values())
    assert {len(row) for row in rows} == {len(header)}
    assert sum("MISSED" in row[-1] for row in rows) == 3 and sum(row[-1].endswith(": met") for row in rows) == 2
    assert rows[0][1:4] == ("5.10 s", "5.20 s", "2")
    assert any(row[1] == "100.0 ms" or row[1] == "300.0 ms" for row in rows)


def test_percentiles_are_of_real_samples() -> None:
    assert spread([float(number) for number in range(1, 101)]) == {"p50": 50.5, "p95": 96.0, "n": 100}
    assert spread([3.0]) == {"p50": 3.0, "p95": 3.0, "n": 1}
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])


def test_the_memory_of_a_process_by_part() -> None:
    found = pss_mib(os.getpid())
    assert found.keys() == PSS.keys()
    assert found["total"] >= found["anonymous"] > 0
    assert found["total"] == pytest.approx(found["anonymous"] + found["files"] + found["snapshot"], abs=0.1)
