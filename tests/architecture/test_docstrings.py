"""A package says what it is, and a module of any size tells its story first."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterable

from tests.architecture.dependencies import ALLOWED
from tests.architecture.sources import PACKAGE, Module, modules

UNTOLD_LINES = 30  # a module up to this long may go without


def undocumented(found: Iterable[Module]) -> list[str]:
    return [
        module.file
        for module in found
        if ast.get_docstring(module.tree) is None and (module.is_package or module.line_count > UNTOLD_LINES)
    ]


def test_packages_and_modules_have_docstrings() -> None:
    assert undocumented(modules()) == []


def test_every_component_is_a_package_with_an_init() -> None:
    """A folder without `__init__.py` would be a namespace package, with no place for its docstring."""
    folders = {key.split(".")[0] for key in ALLOWED}
    present = [PACKAGE / folder for folder in sorted(folders) if any((PACKAGE / folder).rglob("*.py"))]
    assert [folder.name for folder in present if not (folder / "__init__.py").is_file()] == []


def test_missing_docstrings_are_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "__init__.py").write_text("")
    (tmp_path / "a" / "short.py").write_text("x = 1\n")
    (tmp_path / "a" / "long.py").write_text("x = 1\n" * (UNTOLD_LINES + 1))
    (tmp_path / "a" / "told.py").write_text('"""Told."""\n' + "x = 1\n" * UNTOLD_LINES)
    assert undocumented(modules(tmp_path)) == ["a/__init__.py", "a/long.py"]
