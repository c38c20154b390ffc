"""A target with a sentinel tree around it: whatever an archive does, the sentinels must stay as they are."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.unit.archive.tars import fingerprint


@pytest.fixture
def target(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder to extract into; beside and above it, files that an escape would hit."""
    outside = tmp_path / "outside"
    (outside / "deep" / "er").mkdir(parents=True)
    (outside / "secret").write_text("sentinel")
    (outside / "deep" / "script").write_text("#!/bin/sh\n")
    os.chmod(outside / "deep" / "script", 0o755)
    (tmp_path / "evil").write_text("sentinel")
    (tmp_path / "hole").symlink_to(outside)
    folder = outside / "deep" / "er" / "target"
    folder.mkdir()
    before = _without(fingerprint(tmp_path), folder, tmp_path)
    yield folder
    assert _without(fingerprint(tmp_path), folder, tmp_path) == before
    assert [path.name for path in folder.rglob(".vm0-extract-*")] == [], "the staging folder is left behind"


def _without(found: dict[str, str], folder: pathlib.Path, root: pathlib.Path) -> dict[str, str]:
    inside = str(folder.relative_to(root))
    return {name: what for name, what in found.items() if name != inside and not name.startswith(inside + "/")}
