"""What is in an image that was really built: kernel, initramfs, and a root file system that is a guest of ours."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import platform
import stat
import struct
import subprocess
import time

import pytest
import zstandard

from tests.host.image.conftest import mounts_below
from vm0.guest_init.init_script import SCRIPT
from vm0.image import Image, ImageStore, build_image, guest_build, load_recipe
from vm0.image.architectures import architecture
from vm0.image.kernel_modules import LOADABLE
from vm0.image.tree import FIXED_TIME
from vm0.microvm.guest import BUILD_PATH, BUNDLE_PATH, GUEST_PYTHON, HOSTNAME, INIT_PATH

pytestmark = [pytest.mark.host, pytest.mark.network]

IMPORT = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
import vm0.guest_init.main as main, vm0.vsock_guest.main as guest
print(main.__file__, guest.__file__)
"""


def chroot(tree: pathlib.Path, *words: str) -> str:
    done = subprocess.run(["chroot", tree, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_artefacts_are_those_of_the_manifest(image: Image) -> None:
    assert json.loads((image.directory / "image.json").read_text()) == image.manifest
    for name, facts in image.manifest["artefacts"].items():
        content = (image.directory / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["size"], facts["sha256"])
        assert (image.directory / name).stat().st_mode & 0o777 == 0o644  # a machine runs as another user


def test_the_kernels(image: Image) -> None:
    plain, version = image.vmlinux.read_bytes(), image.manifest["kernel"]["version"].encode()
    assert b"Linux version " + version in plain
    assert plain.startswith(b"\x7fELF") if image.architecture == "x86_64" else plain[56:60] == b"ARM\x64"
    assert image.vmlinuz.stat().st_size <= len(plain)


def test_the_initramfs_is_small_and_complete(image: Image) -> None:
    assert image.initramfs.stat().st_size < 2 * 1024 * 1024
    content = zstandard.ZstdDecompressor().decompress(image.initramfs.read_bytes(), max_output_size=1 << 26)
    for name in (b"init\0", b"bin/busybox\0", b"modules/virtio_blk.ko\0", b"modules/squashfs.ko\0", b"TRAILER!!!\0"):
        assert name in content
    order = content[content.index(b"needed virtio_") :].split(b"\0")[0].decode().splitlines()
    names = [line.split()[1] for line in order]
    assert names.index("failover.ko") < names.index("net_failover.ko") < names.index("virtio_net.ko")
    assert [line for line in order if line.split()[0] == "needed"] == order[: order.index("needed overlay.ko") + 1]


def test_the_manifest_says_what_is_in_it(image: Image) -> None:
    manifest = image.manifest
    assert {"python3", "git", "curl", "jq", "ripgrep", "ca-certificates", "sudo", "procps"} <= set(manifest["packages"])
    assert manifest["python"].startswith("3.13")
    assert manifest["guest_build"] == image.build == guest_build()
    assert manifest["kernel"]["console"] == architecture(platform.machine()).console
    assert image.warm == load_recipe("base").warm
    assert not any(name.startswith("linux-image") for name in manifest["packages"])


def test_the_guests_programs(image: Image, tree: pathlib.Path) -> None:
    assert (tree / INIT_PATH[1:]).read_text() == SCRIPT
    assert (tree / INIT_PATH[1:]).stat().st_mode & 0o7777 == 0o755
    assert (tree / BUILD_PATH[1:]).read_text().strip() == image.build
    found = chroot(tree, GUEST_PYTHON, "-I", "-S", "-c", IMPORT, BUNDLE_PATH).split()
    # compiled by the guest's interpreter, and so not again at each start
    assert found == [f"{BUNDLE_PATH}/vm0/guest_init/main.pyc", f"{BUNDLE_PATH}/vm0/vsock_guest/main.pyc"]


def test_the_standard_library_is_compiled(tree: pathlib.Path) -> None:
    """And its compiled files match: they record the time and the size of the source."""
    checked = 0
    for compiled in tree.glob("usr/lib/python3*/**/__pycache__/*.pyc"):
        source = compiled.parent.parent / f"{compiled.name.split('.')[0]}.py"
        flags, mtime, size = struct.unpack_from("<III", compiled.read_bytes(), 4)
        if source.is_symlink():  # into /etc
            continue
        found = source.stat()
        assert flags != 0 or (mtime, size) == (int(found.st_mtime), found.st_size), source
        checked += 1
    sources = [path for path in tree.glob("usr/lib/python3.*/*.py") if not path.name.startswith("_sysconfigdata")]
    assert checked > len(sources) > 100


def test_a_user_with_sudo(tree: pathlib.Path) -> None:
    assert "user:x:1000:1000::/home/user:/bin/bash" in (tree / "etc/passwd").read_text().splitlines()
    home = (tree / "home/user").stat()
    assert (home.st_uid, home.st_gid) == (1000, 1000)
    assert (tree / "home/user/.bashrc").stat().st_uid == 1000
    assert (tree / "usr/bin/sudo").stat().st_mode & stat.S_ISUID
    assert chroot(tree, "sudo", "--list", "--other-user", "user").rstrip().endswith("(ALL : ALL) NOPASSWD: ALL")


def test_what_tells_one_guest_from_another_is_not_in_it(tree: pathlib.Path) -> None:
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert (tree / "etc/resolv.conf").read_bytes() == b"" and not (tree / "etc/resolv.conf").is_symlink()
    assert (tree / "etc/hostname").read_text() == f"{HOSTNAME}\n"


def test_what_no_guest_needs_is_not_in_it(tree: pathlib.Path) -> None:
    for name in (
        "var/lib/apt/lists",
        "var/cache/apt",
        "var/log",
        "run",
        "tmp",
        "boot",
        "usr/share/man",
        "usr/share/locale",
    ):
        files = [path for path in (tree / name).rglob("*") if path.is_file() and path.name != "locale.alias"]
        assert files == [], name
    documents = [path.name for path in (tree / "usr/share/doc").rglob("*") if path.is_file() and not path.is_symlink()]
    assert set(documents) <= {"copyright"} and documents
    assert not list(tree.glob("etc/*-"))
    assert "copy:" not in (tree / "etc/apt/sources.list").read_text()


def test_mount_points(tree: pathlib.Path) -> None:
    for name in ("dev", "mnt", "proc", "run", "sys", "tmp"):
        assert (tree / name).is_dir() and not (tree / name).is_symlink()
    assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_files_made_by_the_build_have_one_time(tree: pathlib.Path) -> None:
    for name in ("etc/hostname", "etc/passwd", "home/user", BUNDLE_PATH[1:], "usr/lib/vm0", "var/lib/dpkg/status", "."):
        assert (tree / name).stat().st_mtime == FIXED_TIME, name
    for name in ("usr/bin/git", "usr/bin/python3.13"):
        assert (tree / name).stat().st_mtime != FIXED_TIME
    newest = max(path.lstat().st_mtime for path in tree.rglob("*"))
    assert newest < time.time() - 3600  # of a package; nothing is from today's build


@pytest.mark.parametrize("name", LOADABLE)
def test_modprobe_finds_what_a_guest_may_ask_for(image: Image, tree: pathlib.Path, name: str) -> None:
    version = image.manifest["kernel"]["version"]
    found = chroot(tree, "modprobe", "--set-version", version, "--show-depends", name).splitlines()
    assert found[-1].split()[1].endswith(f"/{name}.ko")
    for line in found:
        assert (tree / line.split()[1].lstrip("/")).read_bytes().startswith(b"\x7fELF")
    assert "builtin" in chroot(tree, "modprobe", "--set-version", version, "--show-depends", "ext4")


def test_a_second_build_is_quick_and_changes_nothing(store: ImageStore, image: Image) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in image.directory.iterdir()}
    started = time.monotonic()
    said: list[str] = []
    assert build_image(store, load_recipe("base"), architecture=image.architecture, progress=said.append) == image
    assert time.monotonic() - started < 1.0
    assert said == []
    assert {path.name: path.stat().st_mtime_ns for path in image.directory.iterdir()} == before


def test_nothing_is_left_mounted(store: ImageStore, image: Image) -> None:
    assert mounts_below(store.root) == []
    assert not os.listdir(store.root / "staging")
