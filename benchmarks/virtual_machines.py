"""A virtual machine of the QEMU backend (1 vCPU, 256 MiB) ÷ the nearest thing without one, or without a snapshot.

`vm0 benchmark` measures, and says more than these rows. `vm_cold_boot`: start of a VM that boots, to its guest's first
answer; baseline: start of the same guest endpoint as a local process. `vm_restore`: the same of a VM that is restored
from a snapshot; baseline: the cold boot. `vm_restore_exec`: restored, and the first `true` has ended; baseline: booted,
and the first `true` has ended. `vm_exec`: a later `true`; baseline: the same in a local guest process. `vm_pss`: memory
of one idle clone in this host's books (PSS); baseline: what the guest has. `vm_file_in`, `vm_file_out`: 64 MiB into
and out of the guest's disk; baseline: the same with a local guest process.

Needs root, and what `vm0 setup` installs. The image and the snapshot are the tests' (`.test-cache`).
"""

from __future__ import annotations

import io
import os
import pathlib
import platform
import time

from benchmarks.guest import bundle_in, running_guest, workspace
from benchmarks.measurement import Better, Effort, Measurement, Target, median, spread
from vm0.benchmark import MEMORY_MIB, VCPUS, Samples, document, measure
from vm0.benchmark import Effort as VmEffort
from vm0.benchmark.measure import FILE_BYTES, NOTHING
from vm0.image import ImageStore, build_image, load_recipe
from vm0.runner.backends import make_factory
from vm0.runner.config import RunnerConfig, Secret
from vm0.vsock_host import GuestClient

CACHE = pathlib.Path(__file__).parent.parent / ".test-cache"
FULL, QUICK = VmEffort(), VmEffort.quick()


async def run(effort: Effort) -> list[Measurement]:
    with workspace() as folder:
        local = await _Local.measured(folder, effort.count(100, 5))
        build_image(ImageStore(CACHE / "images"), load_recipe("base"), architecture=platform.machine())
        booting, restoring = (make_factory(_config(folder, snapshot), lambda _: None) for snapshot in (False, True))
        async with booting, restoring:
            samples = await measure(booting, restoring, FULL if effort.scale >= 1 else QUICK, lambda _: None)
    return _measurements(samples, local)


def _config(folder: pathlib.Path, snapshot: bool) -> RunnerConfig:
    return RunnerConfig(
        server_url="http://127.0.0.1:1",
        token=Secret("none"),
        state_dir=folder / ("restoring" if snapshot else "booting"),
        backend="qemu",
        images_dir=CACHE / "images",
        snapshots_dir=CACHE / "snapshots",
        snapshot=snapshot,
        sandbox_vcpus=VCPUS,
        sandbox_memory_mib=MEMORY_MIB,
    )


class _Local:
    """The same guest endpoint as a process on this host: seconds, and MB/s of files."""

    def __init__(self) -> None:
        self.start: list[float] = []
        self.exec: list[float] = []
        self.file_in: list[float] = []
        self.file_out: list[float] = []

    @classmethod
    async def measured(cls, folder: pathlib.Path, execs: int) -> _Local:
        found, bundle = cls(), bundle_in(folder)
        for number in range(5):
            begun = time.perf_counter()
            async with running_guest(folder, bundle, name=f"local-{number}") as client:
                found.start.append(time.perf_counter() - begun)
                for _ in range(execs // 5):
                    begun = time.perf_counter()
                    await client.exec(NOTHING)
                    found.exec.append(time.perf_counter() - begun)
                await found._files(client, str(folder / "file"))
        return found

    async def _files(self, client: GuestClient, path: str) -> None:
        data = os.urandom(FILE_BYTES)
        begun = time.perf_counter()
        await client.write_file(path, data)
        self.file_in.append(FILE_BYTES / 1e6 / (time.perf_counter() - begun))
        begun = time.perf_counter()
        await client.read_file(path, io.BytesIO())
        self.file_out.append(FILE_BYTES / 1e6 / (time.perf_counter() - begun))


def _measurements(samples: Samples, local: _Local) -> list[Measurement]:
    found = document(samples, {})
    accelerator = {"accelerator": found["accelerator"]}
    return [
        _seconds("vm_cold_boot", samples.cold_boot, local.start, "a local guest process", Target(6000, on="value"), {}),
        _seconds(
            "vm_restore", samples.restore, samples.cold_boot, "the cold boot", Target(0.04),
            {**accelerator, "seat_ms": spread(samples.create, 1e3), "eight_at_once_ms": spread(samples.burst, 1e3)},
        ),
        _seconds(
            "vm_restore_exec", samples.restore_exec, samples.cold_first_exec, "the cold boot and its first command",
            Target(400, on="value"), {"tenth_ms": spread(samples.tenth_exec, 1e3)},
        ),
        _seconds("vm_exec", samples.exec, local.exec, "in a local guest process", None, {}),
        Measurement(
            name="vm_pss", value=samples.pss_of_eight["total"], unit="MiB", baseline=float(MEMORY_MIB),
            against="the memory that the guest has", samples=1, target=Target(70, on="value"),
            detail={"alone_mib": found["clone_pss_parts_mib"], "of_eight_mib": samples.pss_of_eight},
        ),
        _rate("vm_file_in", samples.file_in, local.file_in),
        _rate("vm_file_out", samples.file_out, local.file_out),
    ]  # fmt: skip


def _seconds(
    name: str, ours: list[float], baseline: list[float], against: str, target: Target | None, detail: dict[str, object]
) -> Measurement:
    return Measurement(
        name=name,
        value=median(ours) * 1e3,
        unit="ms",
        baseline=median(baseline) * 1e3,
        against=against,
        samples=len(ours),
        target=target,
        detail={"ours_ms": spread(ours, 1e3), "baseline_ms": spread(baseline, 1e3), **detail},
    )


def _rate(name: str, ours: list[float], baseline: list[float]) -> Measurement:
    return Measurement(
        name=name,
        value=median(ours),
        unit="MB/s",
        baseline=median(baseline),
        against="a local guest process",
        samples=len(ours),
        better=Better.HIGHER,
        detail={"ours": spread(ours), "baseline": spread(baseline)},
    )
