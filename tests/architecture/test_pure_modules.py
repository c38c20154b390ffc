"""Decisions are pure: protocol, domain, plans, policies and arguments do no I/O, read no clock and throw no dice."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.architecture.sources import Module, imports, is_below, modules, parsed

PURE_PACKAGES = ("vsock_proto", "server.domain")
PURE_NAMES = {"argv", "boot", "plan", "policy"}
IMPURE = ("asyncio", "random", "selectors", "socket", "subprocess", "time")


def is_pure(module: Module) -> bool:
    by_package = any(is_below(module.name, package) for package in PURE_PACKAGES)
    return by_package or module.name.split(".")[-1] in PURE_NAMES


def impure_imports(found: Iterable[Module]) -> list[str]:
    return [
        f"{module.file}:{imported.line}: imports {imported.target}"
        for module in found
        if is_pure(module)
        for imported in imports(module)
        if any(is_below(imported.target, name) for name in IMPURE)
    ]


def test_pure_modules_import_no_effects() -> None:
    assert impure_imports(modules()) == []


@pytest.mark.parametrize(
    "name", ["vsock_proto.codec", "server.domain.leases", "sandbox_qemu.argv", "microvm.netns.plan"]
)
@pytest.mark.parametrize("source", ["import asyncio.tasks", "from time import time", "def f():\n    import socket"])
def test_an_effect_is_found(name: str, source: str) -> None:
    assert len(impure_imports([parsed(name, source)])) == 1


@pytest.mark.parametrize("name", ["server.routes.runs", "runner.planner", "server.domains"])
def test_other_modules_may_have_effects(name: str) -> None:
    assert impure_imports([parsed(name, "import asyncio, time")]) == []


def test_names_that_only_begin_alike_pass() -> None:
    assert impure_imports([parsed("vsock_proto.codec", "import timeit\nfrom datetime import time")]) == []
