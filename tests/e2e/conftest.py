"""End to end: real server, real runners, real sandboxes of the process backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster


@pytest.fixture
def lease_ttl_s() -> float:
    """Short, so that a lease ends in test time."""
    return 2.0


@pytest.fixture
async def cluster(leak_check: None, tmp_path: Path, lease_ttl_s: float) -> AsyncIterator[Cluster]:
    """A running server and nothing else."""
    async with Cluster(tmp_path, lease_ttl_s=lease_ttl_s) as cluster:
        yield cluster
