"""One noun per module: size budgets, with named exceptions that must still be needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.architecture.sources import Module, functions, modules, parsed

MODULE_LINES = 400
FUNCTION_LINES = 60
REPORTED = 10

# "package/module.py" or "package/module.py::Class.function" -> why splitting it would make it worse
BUDGET_EXCEPTIONS: dict[str, str] = {}


def sizes(found: Iterable[Module]) -> dict[str, tuple[int, int]]:
    """What has a budget: {key: (lines, budget)}. A function counts from its `def`, without decorators."""
    measured: dict[str, tuple[int, int]] = {}
    for module in found:
        measured[module.file] = (module.line_count, MODULE_LINES)
        for name, node in functions(module):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            key = f"{module.file}::{name}"
            # overloads and property setters share a name; the longest one speaks for it
            measured[key] = max(measured.get(key, (0, 0)), (lines, FUNCTION_LINES))
    return measured


def budget_problems(measured: Mapping[str, tuple[int, int]], exceptions: Mapping[str, str]) -> list[str]:
    problems = []
    for key, (lines, budget) in measured.items():
        if lines > budget and not exceptions.get(key, "").strip():
            problems.append(f"{key}: {lines} lines, budget {budget}, and no reason in BUDGET_EXCEPTIONS")
        elif lines <= budget and key in exceptions:
            problems.append(f"{key}: {lines} lines are within the budget of {budget}: remove the exception")
    problems += [f"{key}: excepted, but does not exist" for key in exceptions if key not in measured]
    return problems


def test_budgets_are_kept() -> None:
    measured = sizes(modules())
    for budget in (MODULE_LINES, FUNCTION_LINES):
        largest = sorted(((n, key) for key, (n, b) in measured.items() if b == budget), reverse=True)
        print(f"largest of budget {budget}:", *(f"\n  {n:5} {key}" for n, key in largest[:REPORTED]))
    assert budget_problems(measured, BUDGET_EXCEPTIONS) == []


def test_long_modules_and_functions_are_found() -> None:
    body = "\n".join(["        pass"] * FUNCTION_LINES)
    source = f"class C:\n    async def f(self):\n{body}\n" + "\n" * MODULE_LINES
    measured = sizes([parsed("a.b", source)])
    assert measured["a/b.py::C.f"] == (FUNCTION_LINES + 1, FUNCTION_LINES)
    assert [problem.split(":")[0] for problem in budget_problems(measured, {})] == ["a/b.py", "a/b.py"]
    assert budget_problems(measured, {"a/b.py": "a table", "a/b.py::C.f": "one story"}) == []
    assert len(budget_problems(measured, {"a/b.py": "a table", "a/b.py::C.f": " "})) == 1


def test_an_exception_nobody_needs_is_found() -> None:
    measured = sizes([parsed("a.b", "def f():\n    return 1\n")])
    problems = budget_problems(measured, {"a/b.py::f": "was long once", "a/gone.py": "moved"})
    assert problems == [
        "a/b.py::f: 2 lines are within the budget of 60: remove the exception",
        "a/gone.py: excepted, but does not exist",
    ]
