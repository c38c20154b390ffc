"""The parsed source tree: modules, their imports, their functions. Checks read this and import nothing of vm0."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "vm0"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One file below src/vm0; `name` is dotted, without `vm0`, and "" for the root package."""

    name: str
    file: str  # relative to src/vm0, with forward slashes
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.file.endswith("__init__.py")

    @property
    def line_count(self) -> int:
        return len(self.text.splitlines())


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported name, absolute: `from . import x` in vm0.a is `vm0.a.x`."""

    target: str
    line: int


def modules(root: pathlib.Path = PACKAGE) -> list[Module]:
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(parsed(name, path.read_text(encoding="utf-8"), file=relative.as_posix()))
    return found


def parsed(name: str, text: str, file: str = "") -> Module:
    """A module from its text alone; the tests of the checkers make theirs with this."""
    file = file or f"{name.replace('.', '/')}.py"
    return Module(name=name, file=file, text=text, tree=ast.parse(text, filename=file))


def is_below(name: str, ancestor: str) -> bool:
    """Whether dotted `name` is `ancestor` or lies in it."""
    return f"{name}.".startswith(f"{ancestor}.")


def imports(module: Module) -> Iterator[Import]:
    """Every import of a module, inside functions and `if TYPE_CHECKING` too, and constant dynamic ones.

    `from a import b` is reported as `a.b`: whether b is a module or a name in one makes no difference to
    what is imported from where.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(target=alias.name, line=node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_base(module, node)
            for alias in node.names:
                yield Import(target=base if alias.name == "*" else f"{base}.{alias.name}", line=node.lineno)
        elif isinstance(node, ast.Call) and _is_dynamic_import(node.func) and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(target=argument.value, line=node.lineno)


def _absolute_base(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = ["vm0", *module.name.split(".")] if module.name else ["vm0"]
    if not module.is_package:
        package = package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def _is_dynamic_import(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in {"__import__", "import_module"}
    return isinstance(function, ast.Attribute) and function.attr == "import_module"


def functions(module: Module) -> Iterator[tuple[str, FunctionNode]]:
    """Every function with its qualified name, methods and nested functions included."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                yield f"{prefix}{child.name}", child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(module.tree, "")
