"""What makes a tree a guest of ours: PID 1's script, the guest programs, compiled by the guest's own Python."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vm0.guest_bundle import build_bundle
from vm0.image.command import container
from vm0.image.tree import write
from vm0.microvm.guest import BUILD_PATH, BUNDLE_PATH, GUEST_PYTHON, INIT_PATH

INIT_SCRIPT = f"""#!{GUEST_PYTHON} -IS
import sys

sys.path.insert(0, {BUNDLE_PATH!r})
from vm0.guest_init.main import main

main()
"""


def guest_python(tree: Path) -> tuple[str, ...]:
    """The command that runs the guest's interpreter on the host; a foreign one runs under the machine's emulator."""
    return (*container(offline=True), "chroot", str(tree), GUEST_PYTHON)


def install_guest_files(tree: Path) -> str:
    """Put the guest programs into the tree, in place of those that are there; returns their build."""
    with tempfile.TemporaryDirectory(prefix="vm0-bundle-") as folder:
        bundle = build_bundle(Path(folder), python=guest_python(tree))
        content = bundle.path.read_bytes()
    write(tree, BUNDLE_PATH, content)
    write(tree, BUILD_PATH, f"{bundle.build}\n".encode())
    write(tree, INIT_PATH, INIT_SCRIPT.encode(), 0o755)
    return bundle.build
