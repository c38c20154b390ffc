"""What makes a tree a guest of ours: PID 1's script, and the guest programs, compiled by the guest's own Python."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from vm0.guest_bundle.build import BundleError, check_imports, digest, read_sources, write_bundle
from vm0.guest_init.init_script import SCRIPT
from vm0.image.command import container
from vm0.image.errors import BuildError
from vm0.image.tree import write
from vm0.microvm.guest import BUILD_PATH, BUNDLE_PATH, GUEST_PYTHON, INIT_PATH


class GuestCode:
    """The guest programs as they are here now: read once, so that the image's key and its contents are of one state."""

    def __init__(self, sources: Mapping[str, bytes] | None = None) -> None:
        self.sources = dict(read_sources() if sources is None else sources)
        self.build = digest(self.sources)

    def bundle(self, tree: Path) -> bytes:
        """guest.pyz for the interpreter in `tree`. Raises BuildError."""
        file = io.BytesIO()
        try:
            check_imports(self.sources)
            write_bundle(self.sources, file, python=guest_python(tree))
        except BundleError as exc:
            raise BuildError(
                f"the guest's programs cannot be packed: {exc}", hint="does the image have python3?"
            ) from exc
        return file.getvalue()


def guest_python(tree: Path) -> tuple[str, ...]:
    """The command that runs the guest's interpreter on the host; a foreign one runs under the machine's emulator."""
    return (*container(offline=True), "chroot", str(tree), GUEST_PYTHON)


def install_guest_files(tree: Path, code: GuestCode) -> None:
    """Put the guest programs into the tree, in place of those that are there."""
    write(tree, BUNDLE_PATH, code.bundle(tree))
    write(tree, BUILD_PATH, f"{code.build}\n".encode())
    write(tree, INIT_PATH, SCRIPT.encode(), 0o755)
