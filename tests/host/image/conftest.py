"""Real builds: packages are installed once and kept in the repository's `.test-cache`, as for tests with machines."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.support.capabilities import require
from vm0.image import Image, ImageStore, Recipe, build_image, load_recipe
from vm0.image.architectures import architecture
from vm0.image.build import PROGRAMS
from vm0.image.command import missing_program
from vm0.image.layers import installed_key
from vm0.image.packages import package_set

CACHE = pathlib.Path(__file__).resolve().parents[3] / ".test-cache"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A build takes half a minute, the first one longer, and the lock of a running one is waited for."""
    for item in items:
        if item.path.is_relative_to(pathlib.Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def store() -> ImageStore:
    require(os.geteuid() == 0, "building an image needs root")
    missing = missing_program(*PROGRAMS, "unsquashfs")
    require(not missing, f"not installed: {missing}")
    return ImageStore(CACHE / "images")


@pytest.fixture(scope="session")
def image(store: ImageStore) -> Image:
    """`base` for this machine."""
    return build_image(store, load_recipe("base"), architecture=platform.machine())


@pytest.fixture(scope="session")
def tree(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """What is in the image's root file system."""
    found = unsquashed(image, tmp_path_factory.mktemp("rootfs") / "tree")
    yield found
    shutil.rmtree(found)  # pytest would keep it for the next runs


def unsquashed(image: Image, target: pathlib.Path) -> pathlib.Path:
    subprocess.run(
        ["unsquashfs", "-no-progress", "-quiet", "-dest", target, image.rootfs],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    return target


@pytest.fixture
def large_path(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place for what is too large to be kept after the test, as pytest does."""
    path = tmp_path / "large"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def own_store(store: ImageStore, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    """A store with the packages of `base` and nothing else, for tests that must not meet another process."""
    own = ImageStore(tmp_path_factory.mktemp("store") / "images")
    own.prepare()
    key = installed_key(package_set(load_recipe("base"), architecture(image.architecture)))
    with store.locked(key):
        subprocess.run(["cp", "--archive", "--reflink=auto", store.base(key), own.base(key)], check=True, timeout=300)
    yield own
    shutil.rmtree(own.root)


@pytest.fixture
def variant(own_store: ImageStore) -> Iterator[Callable[..., Recipe]]:
    """Recipes with the packages of `base`, which are there, and a name of their own; what they made is removed."""
    before = {path.name for path in (own_store.root / "bases").iterdir()}
    base = load_recipe("base")
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield lambda **changes: dataclasses.replace(base, name=name, **changes)
    for found in own_store.list():
        own_store.remove(found.key)
    for key in {path.name for path in (own_store.root / "bases").iterdir()} - before:
        own_store.remove_base(key)


def mounts_below(path: pathlib.Path) -> list[str]:
    lines = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(str(path))]
