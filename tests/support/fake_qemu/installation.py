"""Puts the program where a VMM's user can run it, with the part of vm0 that it speaks, and with an image for it.

A test's own folders are for nobody but root, as a checkout may be; what an unprivileged VMM runs must not be.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import json
import os
import py_compile
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import require
from tests.support.fake_qemu.faults import FILE, NAMES
from vm0.image import Image
from vm0.sandbox_qemu.machines import MACHINES

ARCHITECTURE = "x86_64"
BUILD = "fake-build"
SOURCES = Path(__file__).resolve().parents[3]
PACKAGES = ("tests/support/fake_qemu", "src/vm0/vsock_proto")
PARENTS = ("tests", "tests/support", "src/vm0")
PROGRAM = """#!{python} -IS
import sys
sys.path[:0] = {paths!r}
from tests.support.fake_qemu.main import main
sys.exit(main())
"""


class FakeQemu:
    """An installed one. `image` is what its machines are started from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.binary = folder / "qemu-system-x86_64"
        self.image = _image(folder / "image")

    def misbehave(self, **faults: object) -> None:
        """For whatever starts from now on; nothing makes it behave again. See `faults`."""
        if unknown := faults.keys() - set(NAMES):
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        fresh = self.folder / f"{FILE}.new"
        fresh.write_text(json.dumps(faults))
        os.replace(fresh, self.folder / FILE)

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make factories of this process start it."""
        machine = dataclasses.replace(MACHINES[ARCHITECTURE], binary=str(self.binary))
        monkeypatch.setitem(MACHINES, ARCHITECTURE, machine)


@contextlib.contextmanager
def installed() -> Iterator[FakeQemu]:
    """Install it for a while."""
    folder = Path(tempfile.mkdtemp(prefix="vm0-fake-qemu-"))
    try:
        folder.chmod(0o755)
        for package in PACKAGES:
            shutil.copytree(SOURCES / package, folder / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
        for parent in PARENTS:
            (folder / "code" / parent / "__init__.py").touch()
        compileall.compile_dir(
            folder / "code", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        fake = FakeQemu(folder)
        paths = [str(folder / "code"), str(folder / "code" / "src")]
        fake.binary.write_text(PROGRAM.format(python=_reachable_python(), paths=paths))
        fake.binary.chmod(0o755)
        yield fake
    finally:
        shutil.rmtree(folder)


def _reachable_python() -> str:
    """An interpreter that every user may run: ours without its virtual environment, or the system's."""
    for candidate in (os.path.realpath(sys.executable), shutil.which("python3", path="/usr/bin:/bin")):
        if candidate and all(path.stat().st_mode & 0o001 for path in (Path(candidate), *Path(candidate).parents)):
            return candidate
    require(False, "no Python that an unprivileged user could run")
    return ""


def _image(folder: Path) -> Image:
    """Kernel and initramfs are opened and not read; the root file system tells the guest which build it is."""
    folder.mkdir()
    for name in ("vmlinuz", "vmlinux", "initramfs"):
        (folder / name).write_bytes(b"not really")
    (folder / "rootfs.squashfs").write_text(BUILD)
    manifest = {"digest": "0" * 64, "recipe": {"name": "fake"}, "warm": ["warm-up"]}
    return Image(directory=folder, key="f" * 24, build=BUILD, architecture=ARCHITECTURE, manifest=manifest)
