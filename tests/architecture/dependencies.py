"""Which component may import which: the table is the architecture, `illegal_imports` enforces it.

A longer key overrides its package (`runner.backends` is the only door to a backend). A package may always import
itself and `vm0` (for `vm0.__version__`). A package that is not in the table may import nothing and is reported, so
that a new component is a decision somebody made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.architecture.sources import Module, imports, is_below

ALLOWED: dict[str, set[str]] = {
    # leaves
    "archive": set(),
    "contracts": set(),
    "vsock_proto": set(),
    "guest_common": set(),
    "sandbox": set(),
    "ably_subscriber": set(),
    # both ends of the link
    "vsock_host": {"vsock_proto", "sandbox"},
    "vsock_guest": {"vsock_proto", "guest_common"},
    # guest programs
    "guest_init": {"vsock_guest", "guest_common"},
    "guest_mock_claude": {"guest_common"},
    "guest_download": {"guest_common", "contracts", "archive"},
    "guest_agent": {"guest_common", "contracts", "archive"},
    # backends
    "sandbox_common": {"sandbox", "vsock_host"},
    "guest_bundle": set(),
    "microvm": {"sandbox"},
    "image": {"guest_bundle", "guest_init", "microvm"},  # guest_init: the script of PID 1
    "sandbox_qemu": {"sandbox", "sandbox_common", "vsock_host", "microvm", "image"},
    "sandbox_process": {"sandbox", "sandbox_common", "guest_bundle", "vsock_host"},
    # services
    "proxy_addon": {"contracts"},
    "server": {"contracts"},
    "runner": {"contracts", "sandbox"},
    # image: a runner's settings name a recipe, and a VM backend takes an image that is there
    "runner.backends": {"sandbox", "sandbox_process", "sandbox_qemu", "sandbox_fc", "image"},
    # sandbox: its errors, which the factory of `runner.backends` raises before there is a runner
    "benchmark": {"sandbox"},  # of factories that its caller makes
    "cli": {"archive", "benchmark", "contracts", "image", "runner", "sandbox", "server"},
}

# Test tools in shipped code: only the suite that every backend must pass.
TEST_TOOLS = {"_pytest", "hypothesis", "pytest", "pytest_asyncio", "schemathesis"}
TEST_TOOLS_ALLOWED: dict[str, set[str]] = {"sandbox.testing": {"pytest"}}


def key_for(name: str, table: Mapping[str, set[str]]) -> str | None:
    """The longest key that covers a module, None if the table does not know it."""
    return max((key for key in table if is_below(name, key)), key=len, default=None)


def illegal_imports(found: Iterable[Module], table: Mapping[str, set[str]] = ALLOWED) -> list[str]:
    found = list(found)
    internal = {module.name.split(".")[0] for module in found} | {key.split(".")[0] for key in table}
    unknown = {module.name.split(".")[0] for module in found if key_for(module.name, table) is None} - {""}
    problems = [f"{name}: not in the dependency table" for name in sorted(unknown)]
    for module in found:
        key = key_for(module.name, table)
        own, allowed = module.name.split(".")[0], table.get(key or "", set())
        for imported in imports(module):
            target = _inside(imported.target, internal)
            if target is None or target.split(".")[0] == own or any(is_below(target, a) for a in allowed):
                continue
            problems.append(f"{module.file}:{imported.line}: imports {target.split('.')[0]} ({imported.target})")
    return problems


def _inside(target: str, internal: set[str]) -> str | None:
    """The part after `vm0.`, None for a foreign module and for a plain name of vm0 itself."""
    root, _, rest = target.partition(".")
    return rest if root == "vm0" and rest.split(".")[0] in internal - {""} else None


def shipped_test_tools(found: Iterable[Module]) -> list[str]:
    return [
        f"{module.file}:{imported.line}: imports {imported.target}"
        for module in found
        for imported in imports(module)
        if (root := imported.target.split(".")[0]) in TEST_TOOLS
        and root not in TEST_TOOLS_ALLOWED.get(module.name, set())
    ]
