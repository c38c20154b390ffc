"""Dependencies point down: the table in `dependencies.py` holds, and the checker finds what it should."""

from __future__ import annotations

import pathlib

import pytest

from tests.architecture.dependencies import ALLOWED, illegal_imports, shipped_test_tools
from tests.architecture.sources import modules

TABLE: dict[str, set[str]] = {
    "low": set(),
    "high": {"low"},
    "high.door": {"back"},
    "back": set(),
}


def problems(root: pathlib.Path, file: str, source: str) -> list[str]:
    for package in ("low", "high", "back"):
        (root / package).mkdir(parents=True, exist_ok=True)
        (root / package / "__init__.py").touch()
    (root / "__init__.py").touch()
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return illegal_imports(modules(root), TABLE)


def test_every_import_is_in_the_table() -> None:
    assert illegal_imports(modules()) == []


def test_test_tools_stay_out_of_shipped_code() -> None:
    assert shipped_test_tools(modules()) == []


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            # a longer key belongs to its package: what it imports, the package depends on
            keys = [key for key in ALLOWED if key == name or key.startswith(f"{name}.")]
            for target in sorted(set().union(*(ALLOWED[key] for key in keys))):
                visit(target.split(".")[0], (*path, name))
            done.add(name)

    for key in ALLOWED:
        visit(key.split(".")[0], ())


@pytest.mark.parametrize(
    "source",
    [
        "import vm0.high",
        "import vm0.high.thing as t",
        "from vm0 import high",
        "from vm0.high import thing",
        "from vm0.high.thing import name",
        "from .. import high",
        "from ..high.thing import name",
        "from ..high import *",
        "def f():\n    from vm0.high import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vm0 import high",
        "import importlib\nimportlib.import_module('vm0.high.thing')",
        "__import__('vm0.high')",
    ],
)
def test_an_upward_import_is_found_however_it_is_written(tmp_path: pathlib.Path, source: str) -> None:
    found = problems(tmp_path, "low/thing.py", source)
    assert len(found) == 1
    assert found[0].startswith("low/thing.py:")
    assert "imports high" in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "import vm0",
        "from vm0 import __version__",
        "from vm0.low import thing",
        "from vm0 import low",
        "from . import other",
        "from .other import name",
        "from .. import __version__",
        "import os, json",
        "from high import thing",  # a foreign package of the same name
    ],
)
def test_legal_imports_pass(tmp_path: pathlib.Path, source: str) -> None:
    assert problems(tmp_path, "high/thing.py", source) == []


def test_relative_imports_in_a_package_file_start_at_the_package(tmp_path: pathlib.Path) -> None:
    assert problems(tmp_path, "low/__init__.py", "from .high import x") == []
    assert problems(tmp_path, "low/__init__.py", "from ..high import x") == [
        "low/__init__.py:1: imports high (vm0.high.x)"
    ]


@pytest.mark.parametrize("file", ["high/door.py", "high/door/inner.py", "high/door/__init__.py"])
def test_a_longer_key_overrides_its_package(tmp_path: pathlib.Path, file: str) -> None:
    assert problems(tmp_path, file, "import vm0.back") == []
    assert problems(tmp_path, file, "import vm0.low") == [f"{file}:1: imports low (vm0.low)"]


def test_only_the_door_may_import_what_is_behind_it(tmp_path: pathlib.Path) -> None:
    assert problems(tmp_path, "high/doorstep.py", "import vm0.back") == ["high/doorstep.py:1: imports back (vm0.back)"]


def test_an_unknown_package_is_reported(tmp_path: pathlib.Path) -> None:
    found = problems(tmp_path, "novel/__init__.py", "import vm0.low")
    assert found == [
        "novel: not in the dependency table",
        "novel/__init__.py:1: imports low (vm0.low)",
    ]


def test_only_the_backend_suite_may_import_pytest(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "testing.py").write_text("import pytest")
    (tmp_path / "sandbox" / "api.py").write_text("def f():\n    from hypothesis import given")
    assert shipped_test_tools(modules(tmp_path)) == ["sandbox/api.py:2: imports hypothesis.given"]
