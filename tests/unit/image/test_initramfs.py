"""The initramfs: what is in it, in which order modules are loaded, and that its script is one that busybox runs."""

from __future__ import annotations

import gzip
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import zstandard

from tests.support.capabilities import require
from vm0.image import initramfs as initramfs_module
from vm0.image.errors import ImageError
from vm0.image.initramfs import APPLETS, checked_busybox, init_script, initramfs, plain_module, programs_machine
from vm0.image.kernel_modules import Module
from vm0.microvm.guest import INIT_PATH

MODULES = [
    (Module(name="failover", file="kernel/net/core/failover.ko.xz", needed=True), b"\x7fELF failover"),
    (Module(name="virtio_net", file="kernel/drivers/net/virtio_net.ko.xz", needed=True), b"\x7fELF net"),
    (Module(name="vsock", file="kernel/net/vsock.ko.xz", needed=False), b"\x7fELF vsock"),
]
SCRIPTS = [pathlib.Path(initramfs_module.__file__).with_name(name) for name in ("initramfs_init.sh", "packages.sh")]


def unpacked(folder: pathlib.Path) -> pathlib.Path:
    reader = shutil.which("busybox")
    require(reader is not None and os.geteuid() == 0, "busybox or root is missing")
    archive = zstandard.ZstdDecompressor().decompress(initramfs(b"busybox", MODULES))
    subprocess.run([str(reader), "cpio", "-id"], input=archive, cwd=folder, check=True, timeout=30)
    return folder


def test_what_is_in_it(tmp_path: pathlib.Path) -> None:
    root = unpacked(tmp_path)
    assert (root / "init").stat().st_mode & 0o777 == 0o755
    assert (root / "bin/busybox").read_bytes() == b"busybox"
    assert {os.readlink(root / "bin" / applet) for applet in APPLETS} == {"busybox"}
    assert (root / "dev/console").is_char_device()
    assert (root / "modules/order").read_text() == "needed failover.ko\nneeded virtio_net.ko\nwanted vsock.ko\n"
    assert (root / "modules/virtio_net.ko").read_bytes() == b"\x7fELF net"
    for folder in ("proc", "sys", "root"):
        assert list((root / folder).iterdir()) == []


def test_the_same_bytes_for_the_same_input() -> None:
    assert initramfs(b"busybox", MODULES) == initramfs(b"busybox", list(MODULES))
    assert initramfs(b"busybox", MODULES) != initramfs(b"busybox", MODULES[::-1])


def test_the_script_hands_over_to_the_guests_init() -> None:
    script = init_script()
    assert f"exec switch_root /root {INIT_PATH}\n" in script
    assert "@" not in script


def test_every_program_of_the_script_is_there() -> None:
    """Busybox has many; only those that are linked by name are found."""
    shell = {
        "exec",
        "export",
        "continue",
        "[",
        "read",
        "while",
        "case",
        "esac",
        "do",
        "done",
        "echo",
        "fail",
        "end",
        "for",
    }
    script = re.sub(r'"[^"]*"|#.*', "", init_script())  # neither texts nor comments
    words = {found[1] for found in re.finditer(r"(?:^|\|\| |&& |\) )\s*([a-z_\[]+)(?= |$)", script, re.MULTILINE)}
    assert words - shell - {"line", "tries", "needed"} <= set(APPLETS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_pass_shellcheck(script: pathlib.Path) -> None:
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    require(shellcheck.is_file(), "shellcheck is not installed")
    found = subprocess.run([shellcheck, "--shell=sh", script], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        ("", b"\x7fELF"),
        (".xz", lzma.compress(b"\x7fELF", check=lzma.CHECK_CRC32)),
        (".gz", gzip.compress(b"\x7fELF", mtime=0)),
        (".zst", zstandard.compress(b"\x7fELF")),
    ],
)
def test_modules_however_they_are_compressed(suffix: str, packed: bytes) -> None:
    assert plain_module(f"kernel/x.ko{suffix}", packed) == b"\x7fELF"


@pytest.mark.parametrize("name", ["x.ko", "x.ko.xz"])
@pytest.mark.parametrize(
    "content", [b"", b"damaged", lzma.compress(b"\x7fELF")[:-3], gzip.compress(b"text", mtime=0), b"\x28\xb5\x2f\xfd"]
)
def test_a_module_that_cannot_be_read_is_named(name: str, content: bytes) -> None:
    with pytest.raises(ImageError, match=re.escape(name)):
        plain_module(name, content)


def test_busybox_of_another_machine_is_refused() -> None:
    program = b"\x7fELF\x02\x01\x01" + bytes(11) + (183).to_bytes(2, "little")
    assert programs_machine(program) == 183
    assert checked_busybox(program, 183) == program
    for content, machine in ((program, 62), (b"#!/bin/sh", 62), (b"", 62)):
        with pytest.raises(ImageError, match="no program for this architecture"):
            checked_busybox(content, machine)
