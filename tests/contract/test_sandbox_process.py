"""The process backend: the shared suite, and what only it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.capabilities import require
from vm0.sandbox import BackendUnavailable, SandboxConfig, StartError, State
from vm0.sandbox.testing import SandboxSuite, new_config, sh
from vm0.sandbox_common import cgroups
from vm0.sandbox_common.ownership import socket_directory
from vm0.sandbox_process import ProcessSandboxFactory

pytestmark = pytest.mark.host


class TestProcessBackend(SandboxSuite):
    @pytest.fixture
    async def factory(self, tmp_path: Path) -> AsyncIterator[ProcessSandboxFactory]:
        async with ProcessSandboxFactory(tmp_path / "backend") as factory:
            yield factory


class TestProcessBackendWithoutCgroups(SandboxSuite):
    """As on a host that lets us make no cgroup: process groups and parent links instead."""

    @pytest.fixture
    async def factory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ProcessSandboxFactory]:
        monkeypatch.setattr(cgroups, "writable_parent", lambda: None)
        async with ProcessSandboxFactory(tmp_path / "backend") as factory:
            yield factory


async def test_a_second_owner_of_a_root_is_refused(tmp_path: Path) -> None:
    async with ProcessSandboxFactory(tmp_path):
        with pytest.raises(BackendUnavailable, match=f"in use by process {os.getpid()}"):
            async with ProcessSandboxFactory(tmp_path):
                pass
    async with ProcessSandboxFactory(tmp_path):
        pass


async def test_nothing_is_left_after_destroy(tmp_path: Path) -> None:
    async with ProcessSandboxFactory(tmp_path) as factory:
        config = new_config()
        sandbox = await factory.create(config)
        await sandbox.start()
        await sandbox.exec(sh("setsid sleep 1000 >/dev/null 2>&1 &"))
        await factory.destroy(sandbox)
        assert list((tmp_path / "sandboxes").iterdir()) == []
        assert list(socket_directory(tmp_path).iterdir()) == []
    assert not socket_directory(tmp_path).exists()


async def test_an_endpoint_that_exits_at_once_is_a_start_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ProcessSandboxFactory(tmp_path) as factory:
        sandbox = await factory.create(new_config())
        script = "import sys; print('no such luck', file=sys.stderr); sys.exit(9)"
        monkeypatch.setattr(sandbox, "program", lambda name: (sys.executable, "-c", script))
        with pytest.raises(StartError, match="exited with 9") as caught:
            await sandbox.start()
        assert "no such luck" in caught.value.log_tail
        assert sandbox.state is State.STOPPED


@pytest.mark.parametrize("grouped", [True, False], ids=["cgroup", "no-cgroup"])
async def test_a_killed_owner_leaves_nothing_that_its_successor_keeps(
    tmp_path: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(not grouped or cgroups.writable_parent() is not None, "no writable cgroup v2 hierarchy with cgroup.kill")
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(tmp_path), str(grouped), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    guest, command = (int(word) for word in (await owner.stdout.readline()).split())
    owner.send_signal(signal.SIGKILL)
    await owner.wait()
    if not grouped:
        monkeypatch.setattr(cgroups, "writable_parent", lambda: None)
    async with ProcessSandboxFactory(tmp_path) as factory:
        assert list((tmp_path / "sandboxes").iterdir()) == []
        sandbox = await factory.create(SandboxConfig(sandbox_id="mine"))
        await sandbox.start()
        async with asyncio.timeout(5):
            for pid in (guest, command):
                await sandbox.exec(sh(f"while kill -0 {pid}; do sleep 0.02; done 2>/dev/null"))
        assert not _alive(guest) and not _alive(command)


OWNER = """
import asyncio, pathlib, sys
from vm0.sandbox.testing import sh
from vm0.sandbox import SandboxConfig
from vm0.sandbox_common import cgroups
from vm0.sandbox_process import ProcessSandboxFactory

async def main():
    if sys.argv[2] != "True":
        cgroups.writable_parent = lambda: None
    async with ProcessSandboxFactory(pathlib.Path(sys.argv[1])) as factory:
        sandbox = await factory.create(SandboxConfig(sandbox_id="mine"))
        await sandbox.start()
        process = await sandbox.start_process(sh("echo $PPID $$; exec sleep 1000", stdout_limit=None))
        print((await process.stdout.read()).decode().strip(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
