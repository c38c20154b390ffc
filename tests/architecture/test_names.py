"""Names carry a role: no module is called what any module could be called."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from tests.architecture.sources import REPOSITORY

BANNED = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
FOLDERS = ("src", "tests", "benchmarks", "examples", "tools")


def nameless(paths: Iterable[pathlib.PurePath]) -> list[str]:
    """Files and folders with a banned name; `guest_common` is a component, `common.py` is not a noun."""
    return sorted({str(path) for path in paths if path.suffix == ".py" and BANNED & {path.stem, *path.parent.parts}})


def test_every_module_has_a_name_of_its_own() -> None:
    paths = (path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
    assert nameless(path.relative_to(REPOSITORY) for path in paths) == []


def test_banned_names_are_found() -> None:
    bad = ["src/vm0/a/utils.py", "src/vm0/helpers/x.py"]
    good = ["src/vm0/guest_common/log.py", "src/vm0/a/commons.py", "src/vm0/a/utils.sql"]
    assert nameless(map(pathlib.PurePath, bad + good)) == sorted(bad)
