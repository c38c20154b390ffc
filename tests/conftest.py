"""For all tests: a clean environment, and a leak check for those that start real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.leaks import no_leaks

LEAK_CHECKED_MARKERS = ("host", "e2e")


def pytest_configure() -> None:
    """The caller's settings must not decide a test, nor reach the processes it starts."""
    for name in [name for name in os.environ if name.startswith("VM0_")]:
        del os.environ[name]
    # asyncio's debug mode makes everything slower than the deadlines under test
    os.environ.pop("PYTHONASYNCIODEBUG", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Virtual machines last, and so beside each other: emulated ones take all of a processor, and tests of time limits
    should not run beside that."""
    items.sort(key=lambda item: item.get_closest_marker("vm") is not None)


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fail the test if children or open descriptors differ before and after it; any test may ask for this.

    Ask before other fixtures (first in the signature): what is set up later is torn down, and so gone, earlier.
    """
    with no_leaks():
        yield


@pytest.fixture(autouse=True)
def _leak_check_of_marked_tests(request: pytest.FixtureRequest) -> None:
    if any(request.node.get_closest_marker(name) for name in LEAK_CHECKED_MARKERS):
        request.getfixturevalue("leak_check")
