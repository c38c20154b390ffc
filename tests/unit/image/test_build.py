"""What a build checks before it begins."""

from __future__ import annotations

import os
import pathlib

import pytest

from vm0.image import ImageError, ImageStore, build_image, load_recipe
from vm0.image import build as build_module


def test_building_needs_root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="needs root") as caught:
        build_image(ImageStore(tmp_path / "images"), load_recipe("base"), architecture="x86_64")
    assert "sudo" in caught.value.hint
    assert not (tmp_path / "images").exists()


def test_a_missing_program_is_named_with_its_package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(build_module, "missing_program", lambda *names: "mksquashfs")
    with pytest.raises(ImageError, match="needs mksquashfs, which is not installed") as caught:
        build_image(ImageStore(tmp_path / "images"), load_recipe("base"), architecture="x86_64")
    assert "squashfs-tools" in caught.value.hint


def test_an_architecture_that_is_not_in_the_table(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ImageError, match="riscv64"):
        build_image(ImageStore(tmp_path / "images"), load_recipe("base"), architecture="riscv64")
