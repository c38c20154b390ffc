"""Runs in virtual machines, through command line, server and runner: what goes in, comes out, and is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from tests.support.cluster import Cluster, Service, command_run
from tests.vm.conftest import CACHE, MEMORY_MIB
from vm0.contracts.runs import Isolation, OutcomeKind, RunStatus
from vm0.image import Image

pytestmark = [pytest.mark.vm, pytest.mark.e2e]

REPOSITORY = CACHE.parent
VM_TIERS = {Isolation.EMULATED_VM, Isolation.HARDWARE_VM}
COMMAND_S = 200.0
READY_S = 120.0  # of a runner that has to make its snapshot first, on a busy machine
SETTINGS = {
    "VM0_RUNNER_IMAGES_DIR": str(CACHE / "images"),
    "VM0_RUNNER_SNAPSHOTS_DIR": str(CACHE / "snapshots"),
    "VM0_RUNNER_SANDBOX_MEMORY_MIB": str(MEMORY_MIB),
}


class Vm0:
    """The command with a state directory of its own, and the images and snapshots of all tests."""

    def __init__(self, home: pathlib.Path) -> None:
        self.home = home

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            [sys.executable, "-m", "vm0.cli", *words],
            env={**os.environ, **SETTINGS, "VM0_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert found.returncode == code, f"exit code {found.returncode}\n{found.stdout}\n{found.stderr}"
        return found

    def run(self, *words: str) -> tuple[dict[str, Any], str]:
        """The run's record, and what was said on stderr."""
        found = self("run", "--agent", "command", "--json", *words)
        records = [json.loads(line) for line in found.stdout.splitlines()]
        assert records[-1]["type"] == "run"
        return records[-1], found.stderr


@pytest.fixture
def vm0(image: Image, tmp_path: pathlib.Path) -> Vm0:
    return Vm0(tmp_path / "home")


def test_a_folder_goes_through_a_vm_and_is_resumed_in_another(vm0: Vm0, tmp_path: pathlib.Path) -> None:
    project, out = tmp_path / "project", tmp_path / "out"
    project.mkdir()
    (project / "given.txt").write_text("given\n")
    (project / "gone.txt").write_text("gone\n")
    words = ("--artifact", str(project), "--output", str(out))
    first, said = vm0.run(*words, "rm gone.txt; uname -r > kernel.txt; id -un > user.txt; cat given.txt >> kernel.txt")
    assert (first["status"], first["outcome"]["exitCode"]) == ("completed", 0)
    assert first["isolation"] in {tier.value for tier in VM_TIERS}
    assert f"backend qemu (firecracker: unsupported), isolation `{first['isolation']}`" in said
    assert {path.name for path in out.iterdir()} == {"given.txt", "kernel.txt", "user.txt"}
    kernel, given = (out / "kernel.txt").read_text().splitlines()
    assert kernel != os.uname().release and given == "given"
    assert (out / "user.txt").read_text() == "user\n"
    assert (project / "gone.txt").exists(), "the run worked on a copy"
    assert first["checkpoint"]["artifactVersion"]
    second, _ = vm0.run("--resume", first["runId"], 'test -e kernel.txt && test ! -e gone.txt && echo "$VM0_RUN_ID"')
    assert second["resumedFrom"] == first["runId"] and second["outcome"]["exitCode"] == 0


def test_a_run_in_a_vm_has_no_token_and_no_secret_of_the_host(vm0: Vm0) -> None:
    found = vm0("run", "--agent", "command", "env; cat /proc/cmdline; ls -A /run/vm0 /root 2>&1 || :")
    for token_file in (vm0.home / "server").glob("*.token"):
        assert token_file.read_text().strip() not in found.stdout
    assert "vm0_user_" not in found.stdout and "vm0_runner_" not in found.stdout and "vm0_sandbox_" not in found.stdout


def test_setup_has_nothing_to_do_and_says_what_a_run_gets(vm0: Vm0) -> None:
    found = json.loads(vm0("setup", "--offline", "--json").stdout)["images"]["base"]
    assert found["backend"] == "qemu" and found["isolation"] in {tier.value for tier in VM_TIERS}
    key = found["start"].removeprefix("snapshot ")
    assert key in {path.name for path in (CACHE / "snapshots").iterdir()}
    assert f"isolation `{found['isolation']}`" in vm0("setup", "--offline").stdout


def test_the_demo_does_what_it_says(vm0: Vm0) -> None:
    found = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "demo.py"],
        env={**os.environ, **SETTINGS, "VM0_HOME": str(vm0.home)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    assert "Demo done: both runs did what they must." in found.stdout
    assert "sandbox_start" in found.stdout and "isolation: process" not in found.stdout


@pytest.fixture
async def cluster(image: Image, tmp_path: pathlib.Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, lease_ttl_s=2.0) as cluster:
        yield cluster


async def started(cluster: Cluster, name: str = "r0") -> Service:
    runner = cluster.runner(name, backend="qemu", settings=SETTINGS)
    await runner.start()
    await runner.ready(READY_S)
    return runner


async def test_a_runner_executes_runs_beside_each_other(cluster: Cluster) -> None:
    runner = await started(cluster)
    ids = [
        (await cluster.api.create_run(command_run("cat /etc/machine-id", isolation=Isolation.EMULATED_VM))).run_id
        for _ in range(2)
    ]
    machines = set()
    for run_id in ids:
        view = await cluster.finished(run_id, COMMAND_S)
        assert (view.status, view.isolation in VM_TIERS) == (RunStatus.COMPLETED, True), view
        events = (await cluster.api.events(run_id, after=-1, wait_s=0)).events
        machines |= {event["text"] for event in events if event["type"] == "output"}
    assert len(machines) == 2, "each clone of the snapshot is a machine of its own"
    assert await runner.end() == 0
    assert cluster.leftovers() == []


async def test_a_killed_runner_leaves_no_vm_once_it_is_back(cluster: Cluster) -> None:
    runner = await started(cluster)
    run_id = (await cluster.api.create_run(command_run("echo on; sleep 300"))).run_id
    async with asyncio.timeout(COMMAND_S):
        while not (await cluster.api.events(run_id, after=-1, wait_s=5)).events:
            pass
    vms = set(vm_processes(cluster.folder / "r0"))
    assert len(vms) == 1
    await runner.end(signal.SIGKILL)
    assert running(vms) == vms, "a killed owner cannot have ended it"
    again = await started(cluster)
    assert running(vms) == set()
    view = await cluster.finished(run_id, COMMAND_S)
    assert view.outcome is not None and view.outcome.kind is OutcomeKind.LOST
    assert await again.end() == 0
    assert cluster.leftovers() == []


def vm_processes(state_dir: pathlib.Path) -> Iterable[int]:
    """As their pid files say."""
    for path in state_dir.glob("qemu/sandboxes/*/qemu.pid"):
        yield int(path.read_text().split()[0])


def running(pids: set[int]) -> set[int]:
    """Those that are there and no zombies, which only wait for this machine's PID 1."""
    found = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
                found.add(pid)
    return found
