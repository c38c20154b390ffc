from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.support.fake_api import FakeApi
from tests.unit.guest_agent.sandbox import GuestSandbox


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api
        assert api.contract_errors == []


@pytest.fixture
def sandbox(tmp_path: pathlib.Path, api: FakeApi) -> Iterator[GuestSandbox]:
    """A sandbox whose API is `api`."""
    sandbox = GuestSandbox(tmp_path, api.url)
    yield sandbox
    sandbox.close()


@pytest.fixture
def local(tmp_path: pathlib.Path) -> Iterator[GuestSandbox]:
    """A sandbox without an API."""
    sandbox = GuestSandbox(tmp_path)
    yield sandbox
    sandbox.close()
