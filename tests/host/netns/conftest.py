"""A private host for each test."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from tests.host.netns.machine import PrivateHost, private_host
from tests.support.capabilities import require


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Iterator[PrivateHost]:
    require(os.geteuid() == 0, "network namespaces need root")
    require(shutil.which("nft") is not None, "nft is not installed")
    require(pathlib.Path("/dev/net/tun").exists(), "no /dev/net/tun")
    with private_host(tmp_path) as made:
        yield made
