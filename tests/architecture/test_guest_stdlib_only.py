"""What runs in the guest, or is shared with it, needs nothing but the guest's Python."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from tests.architecture.sources import Module, imports, modules, parsed

SHARED_WITH_GUEST = {"archive", "contracts", "vsock_guest", "vsock_proto"}

# Still in the standard library of our oldest Python (3.11), gone from the guest's (3.13).
GONE_FROM_GUEST = set(
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib nis nntplib "
    "ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib".split()
)
AVAILABLE = (sys.stdlib_module_names - GONE_FROM_GUEST) | {"vm0"}


def runs_in_guest(module: Module) -> bool:
    package = module.name.split(".")[0]
    return package in SHARED_WITH_GUEST or package.startswith("guest_")


def foreign_imports(found: Iterable[Module]) -> list[str]:
    return [
        f"{module.file}:{imported.line}: imports {imported.target}"
        for module in found
        if runs_in_guest(module)
        for imported in imports(module)
        if imported.target.split(".")[0] not in AVAILABLE
    ]


def test_guest_code_is_standard_library_only() -> None:
    assert foreign_imports(modules()) == []


@pytest.mark.parametrize("source", ["import aiohttp", "def f():\n    from rich.text import Text", "import telnetlib"])
def test_a_foreign_import_is_found(source: str) -> None:
    assert len(foreign_imports([parsed("guest_agent.main", source)])) == 1
    assert foreign_imports([parsed("runner.main", source)]) == []


@pytest.mark.parametrize("source", ["import os.path", "from vm0.guest_common import x", "from . import y"])
def test_own_and_standard_imports_pass(source: str) -> None:
    assert foreign_imports([parsed("vsock_proto.codec", source)]) == []
