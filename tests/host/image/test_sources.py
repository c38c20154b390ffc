"""Packages from a directory: builds that fetch nothing, and that give the same bytes each time."""

from __future__ import annotations

import contextlib
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.host.image.conftest import mounts_below, unsquashed
from tests.support.capabilities import require
from vm0.image import BuildOptions, Image, ImageStore, build_image, load_recipe
from vm0.image.store import ARTEFACTS

pytestmark = [pytest.mark.host, pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(1800)]

BINFMT = pathlib.Path("/proc/sys/fs/binfmt_misc")


@pytest.fixture(scope="module")
def saved(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Every package of `base`, as `--save-sources` keeps them."""
    target = tmp_path_factory.mktemp("saved")
    build_image(store, load_recipe("base"), architecture=platform.machine(), options=BuildOptions(save_to=target))
    yield target
    shutil.rmtree(target)


def digests(image: Image) -> dict[str, str]:
    return {name: image.manifest["artefacts"][name]["sha256"] for name in ARTEFACTS}


def test_the_same_packages_give_the_same_bytes(
    store: ImageStore, saved: pathlib.Path, large_path: pathlib.Path
) -> None:
    """Twice from the directory, without any network, in directories with other names; and as from the network."""
    image = build_image(store, load_recipe("base"), architecture=platform.machine())
    built = []
    for name in ("one", "another place"):
        other = ImageStore(large_path / name)
        options = BuildOptions(from_dir=saved, offline=True)
        built.append(build_image(other, load_recipe("base"), architecture=image.architecture, options=options))
        assert mounts_below(large_path) == []
    assert digests(built[0]) == digests(built[1]), difference(built[0], built[1], large_path)
    assert built[0].digest == built[1].digest
    assert digests(built[0]) == digests(image), difference(built[0], image, large_path)
    assert built[0].manifest["packages"] == image.manifest["packages"]


def difference(one: Image, other: Image, folder: pathlib.Path) -> str:
    """Which files differ, for whoever has to find out why."""
    trees = [unsquashed(image, folder / f"tree-{number}") for number, image in enumerate((one, other))]
    done = subprocess.run(["diff", "-rq", "--no-dereference", *trees], capture_output=True, text=True)
    return done.stdout or "only times, owners or modes differ"


def test_new_guest_code_costs_seconds(store: ImageStore) -> None:
    """The layers below are there: remove the image alone, and build it again."""
    image = build_image(store, load_recipe("base"), architecture=platform.machine())
    before = digests(image)
    said: list[str] = []
    store.remove(image.key)
    again = build_image(store, load_recipe("base"), architecture=image.architecture, progress=said.append)
    assert digests(again) == before
    assert said == ["adding the guest's programs", "packing the root file system", "packing the initramfs"]


@pytest.fixture
def emulation() -> Iterator[None]:
    """This machine runs arm64 programs, by the kernel's binfmt_misc; what was not there is taken away again."""
    require(platform.machine() in ("x86_64", "aarch64"), "no image for this machine")
    if platform.machine() == "aarch64":
        yield
        return
    require(shutil.which("qemu-aarch64-static") is not None, "qemu-user-static is not installed")
    with contextlib.ExitStack() as undo:
        if not (BINFMT / "register").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
            undo.callback(lambda: subprocess.run(["umount", BINFMT], check=True))
        if not (BINFMT / "qemu-aarch64").exists():
            require(shutil.which("update-binfmts") is not None, "binfmt-support is not installed")
            subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=True)
            undo.callback(lambda: subprocess.run(["update-binfmts", "--disable", "qemu-aarch64"], check=True))
        yield


@pytest.mark.usefixtures("emulation")
def test_an_image_for_arm64(store: ImageStore) -> None:
    """Kernel, drivers, root and guest programs of the other architecture, and a machine that boots them."""
    image = build_image(store, load_recipe("base"), architecture="aarch64")
    assert image.architecture == "aarch64"
    assert image.vmlinux.read_bytes()[56:60] == b"ARM\x64"
    assert image.manifest["kernel"]["package"].endswith("-arm64")
    require(shutil.which("qemu-system-aarch64") is not None, "qemu-system-arm is not installed")
    probe = boot_arm64(image, "vm0.probe=1", timeout_s=60)
    assert probe.splitlines()[0].endswith("vm0-probe-ok")
    # PID 1 gets as far as what it is told by the command line, of which nothing is here
    assert "vm0: init failed at kernel parameters" in boot_arm64(image, "vm0.ip=nonsense", timeout_s=120)


def boot_arm64(image: Image, words: str, *, timeout_s: float) -> str:
    """What the console says until the machine is off."""
    console = image.manifest["kernel"]["console"]
    done = subprocess.run(
        [
            *("qemu-system-aarch64", "-accel", "tcg", "-M", "virt", "-cpu", "max", "-m", "256", "-no-reboot"),
            *("-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"),
            *("-kernel", image.vmlinuz, "-initrd", image.initramfs),
            *("-drive", f"id=root,file={image.rootfs},format=raw,readonly=on,if=none,file.locking=off"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-append", f"console={console} quiet loglevel=3 panic=-1 {words}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=True,
    )
    return done.stdout


def test_claude_code(store: ImageStore, large_path: pathlib.Path) -> None:
    """One program from npm, for this architecture, which says its version in the image's own tree."""
    require(shutil.which("npm") is not None, "npm is not installed")
    image = build_image(store, load_recipe("claude-code"), architecture=platform.machine())
    (version,) = image.manifest["npm"].values()
    tree = unsquashed(image, large_path / "tree")
    done = subprocess.run(
        ["chroot", tree, "env", "-i", "HOME=/tmp", "PATH=/usr/local/bin:/usr/bin:/bin", "claude", "--version"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith(version), done.stderr
    assert "claude --version" in image.warm
