"""What a test needs from the machine it runs on."""

from __future__ import annotations

import os

import pytest


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def require(capability: bool, reason: str) -> None:
    """Skip the test (or the module, if called at import) without the capability; with CI=true fail instead.

    A laptop may lack KVM or root. CI may not: a skipped test there is a test that nobody runs.
    """
    __tracebackhide__ = True
    if capability:
        return
    if in_ci():
        pytest.fail(f"missing capability: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
