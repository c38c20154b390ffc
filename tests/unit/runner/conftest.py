"""A runner's surroundings: a fake control plane over HTTP, a backend in memory, short limits."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.fake_backend import FakeFactory
from tests.support.fake_control_plane import RUNNER_TOKEN, FakeControlPlane
from vm0.runner.config import PhaseLimits, RunnerConfig, Secret
from vm0.runner.service import Runner, running_runner

SHORT = PhaseLimits(
    create_s=1.0, start_s=1.0, bridge_s=1.0, storages_s=1.0, session_s=1.0, payload_s=1.0, agent_start_s=1.0,
    agent_grace_s=0.3, agent_margin_s=0.3, outcome_s=1.0, logs_s=1.0, report_s=1.0, destroy_s=1.0,
)  # fmt: skip


@pytest.fixture
def short_dir() -> Iterator[pathlib.Path]:
    """For Unix sockets, whose paths have 107 bytes at most."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vm0-"))
    yield folder
    shutil.rmtree(folder)


@pytest_asyncio.fixture
async def plane() -> AsyncIterator[FakeControlPlane]:
    async with FakeControlPlane() as found:
        yield found


@pytest_asyncio.fixture
async def factory(short_dir: pathlib.Path) -> FakeFactory:
    return FakeFactory(short_dir / "sockets")


class Bench:
    """Makes runners on one state directory."""

    def __init__(self, plane: FakeControlPlane, factory: FakeFactory, folder: pathlib.Path) -> None:
        self.plane, self.factory, self.folder = plane, factory, folder

    def config(self, **settings: Any) -> RunnerConfig:
        known: dict[str, Any] = {
            "server_url": self.plane.url, "token": Secret(RUNNER_TOKEN), "state_dir": self.folder / "state",
            "name": "test", "backend": "process", "max_concurrent": 2, "poll_wait_s": 5.0, "poll_retry_min_s": 0.02,
            "poll_retry_max_s": 0.1, "shutdown_report_s": 1.0, "limits": SHORT,
        }  # fmt: skip
        return RunnerConfig(**{**known, **settings})

    @contextlib.asynccontextmanager
    async def runner(self, **settings: Any) -> AsyncIterator[Runner]:
        async with running_runner(self.config(**settings), self.factory) as runner:
            yield runner

    def left_over(self) -> list[str]:
        """What must not be there when no run is in execution."""
        state = self.folder / "state"
        found = [*(state / "spool").iterdir(), *(state / "tmp").iterdir(), *self.factory.sockets.glob("*")]
        return sorted([*(path.name for path in found), *self.factory.live])


@pytest.fixture
def bench(plane: FakeControlPlane, factory: FakeFactory, short_dir: pathlib.Path) -> Bench:
    return Bench(plane, factory, short_dir)
