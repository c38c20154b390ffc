"""`vm0 benchmark` on real machines: every number is taken and makes sense. How fast anything is, is not judged here."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from tests.vm.conftest import MEMORY_MIB
from vm0 import benchmark
from vm0.benchmark.report import ROWS
from vm0.sandbox_qemu import QemuOptions, QemuSandboxFactory

pytestmark = pytest.mark.vm

LITTLE = benchmark.Effort(boots=1, restores=2, execs=3, cycles=1, bursts=1, files=1, forks=1)


async def test_every_number_is_taken(options: QemuOptions, tmp_path: pathlib.Path) -> None:
    assert (benchmark.MEMORY_MIB, benchmark.VCPUS) == (MEMORY_MIB, options.vcpus), "the snapshot of all tests"
    said: list[str] = []
    cold = QemuSandboxFactory(tmp_path / "cold", dataclasses.replace(options, snapshots=None))
    async with cold, QemuSandboxFactory(tmp_path / "warm", options) as warm:
        samples = await benchmark.measure(cold, warm, LITTLE, said.append)
    found = benchmark.document(samples, {})
    assert found["accelerator"] in ("tcg", "kvm")
    assert found["restore_first_answer_s"]["n"] == 2 and found["exec_s"]["n"] == 3
    assert found["restore_first_answer_s"]["p50"] < found["cold_boot_s"]["p50"]
    assert found["restore_first_answer_s"]["p50"] < found["restore_first_exec_s"]["p50"]
    assert 10 < found["clone_pss_mib"] < 2 * MEMORY_MIB
    assert found["clone_pss_of_8_parts_mib"]["snapshot"] < found["clone_pss_parts_mib"]["snapshot"], "pages are shared"
    assert set(found["restore_steps_s"]) >= {"spawn", "load", "identity"}
    assert len(said) == 8 and len(benchmark.table(found)) == len(ROWS) + 1
