"""`plane`: a real server, one per test."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.contract.plane import Plane, running_plane


@pytest.fixture
async def plane(tmp_path: pathlib.Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "state") as running:
        yield running
