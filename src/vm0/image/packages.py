"""The tree of a recipe's packages, and the kernel beside it: one run of mmdebstrap, cached by what went into it.

<base>/tree      the installed packages
<base>/sources   every package file, as `--from` takes them
<base>/kernel    vmlinuz, vmlinux, busybox, and modules/<version>/ with depmod's data
<base>/base.json versions
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm0.image.architectures import Architecture
from vm0.image.command import Commands
from vm0.image.errors import BuildError
from vm0.image.kernel_image import boot_kernels
from vm0.image.recipe import Recipe

REQUIRED = ("kmod", "passwd", "python3-minimal")  # the guest's own programs; modprobe; users
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/lintian/*", "/usr/share/locale/*", "/usr/share/man/*")
KEPT = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
INSTALL_S = 1800.0  # under emulation it takes some minutes
UNPACK_S = 120.0
DEPMOD_S = 120.0
BINFMT = Path("/proc/sys/fs/binfmt_misc")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSet:
    """What decides a tree of packages. `sources` is the digest of the directory that they come from, "" for the net."""

    suite: str
    mirrors: tuple[str, ...]
    packages: tuple[str, ...]
    architecture: Architecture
    sources: str = ""


def package_set(recipe: Recipe, architecture: Architecture, sources: str = "") -> PackageSet:
    return PackageSet(
        suite=recipe.suite,
        mirrors=recipe.mirrors if not sources else (),
        packages=tuple(sorted({*recipe.packages, *REQUIRED})),
        architecture=architecture,
        sources=sources,
    )


def mmdebstrap_argv(
    wanted: PackageSet, *, tree: Path, script: Path, sources: Path, mirrors: Sequence[str]
) -> tuple[str, ...]:
    hook = shlex.join(["sh", str(script)]) + ' "$1" ' + shlex.join([str(sources), wanted.architecture.kernel_package])
    return (
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--architectures={wanted.architecture.debian}",
        f"--include={','.join(wanted.packages)}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
        *(f"--dpkgopt=path-include={path}" for path in KEPT),
        "--skip=essential/unlink",  # else the first packages are gone when the hook keeps them
        "--skip=check/qemu",  # that is `check_emulation`
        f"--customize-hook={hook}",
        wanted.suite,
        str(tree),
        *mirrors,
    )


def install(
    staging: Path, wanted: PackageSet, commands: Commands, source_dir: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Fill `staging` with tree, sources and kernel; returns the versions. Raises BuildError."""
    check_emulation(wanted.architecture)
    tree, sources, script = staging / "tree", staging / "sources", staging / "packages.sh"
    sources.mkdir()
    script.write_bytes(Path(__file__).with_name("packages.sh").read_bytes())
    mirrors: Sequence[str] = wanted.mirrors
    if source_dir is not None:
        progress(f"indexing the packages in {source_dir}")
        mirrors = [flat_repository(staging / "repository", source_dir, wanted, commands)]
    progress(
        f"installing {len(wanted.packages)} packages and what they need ({wanted.suite}, {wanted.architecture.debian})"
    )
    commands.run(
        mmdebstrap_argv(wanted, tree=tree, script=script, sources=sources, mirrors=mirrors),
        what="installing packages",
        timeout_s=INSTALL_S,
        hint=_install_hint(commands.offline, source_dir),
    )
    if source_dir is not None:
        _take_sources_list(source_dir, sources, tree)
        shutil.rmtree(staging / "repository")
    script.unlink()
    progress("unpacking the kernel")
    kernel = unpack_kernel(staging, tree, sources, wanted.architecture, commands)
    return {"kernel": kernel, "packages": installed_packages(tree)}


def check_emulation(architecture: Architecture) -> None:
    """Raises BuildError if this machine cannot run the guest's programs, which installing them needs."""
    import platform

    if platform.machine() == architecture.name:
        return
    try:
        if (BINFMT / architecture.emulator).read_text().startswith("enabled"):
            return
    except OSError:
        pass
    raise BuildError(
        f"this machine cannot run programs for {architecture.name}, which building such an image needs",
        hint="install qemu-user-static and binfmt-support (apt-get install qemu-user-static binfmt-support)",
    )


def _install_hint(offline: bool, source_dir: Path | None) -> str:
    if source_dir is not None:
        return f"does {source_dir} have all packages of the recipe? fill it by a build with --save-sources"
    if offline:
        return "--offline needs packages that are here already: give their directory with --from"
    return "is there a network? a mirror is named by `mirrors` in the recipe"


def digest_of_files(source_dir: Path, pattern: str) -> str:
    """Names the files in a directory by their contents."""
    total = hashlib.sha256()
    for path in sorted(source_dir.glob(pattern)):
        with open(path, "rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def flat_repository(folder: Path, source_dir: Path, wanted: PackageSet, commands: Commands) -> str:
    """An apt repository of the packages in `source_dir` for this architecture; returns its line for sources.list."""
    folder.mkdir()
    entries: list[str] = []
    for path in sorted(source_dir.glob("*.deb")):
        control = commands.run(
            ["dpkg-deb", "--field", path], what=f"reading {path.name}", timeout_s=UNPACK_S, answer=True
        ).decode(errors="replace")
        if not {f"Architecture: {wanted.architecture.debian}", "Architecture: all"} & set(control.splitlines()):
            continue
        (folder / path.name).symlink_to(path.resolve())
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        entries.append(f"{control.rstrip()}\nFilename: ./{path.name}\nSize: {size}\nSHA256: {digest}\n")
    if not entries:
        raise BuildError(
            f"{source_dir} has no packages (*.deb) for {wanted.architecture.debian}",
            hint="fill it by a build with --save-sources",
        )
    (folder / "Packages").write_text("\n".join(entries))
    index = (folder / "Packages").read_bytes()
    (folder / "Release").write_text(  # apt looks for essential packages in the archive of this name
        f"Suite: {wanted.suite}\nCodename: {wanted.suite}\nArchitectures: {wanted.architecture.debian}\n"
        f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
    )
    return f"deb [trusted=yes] copy:{urllib.parse.quote(str(folder))} ./"


def _take_sources_list(source_dir: Path, sources: Path, tree: Path) -> None:
    """The guest's own sources.list is that of the build that fetched the packages, not our temporary directory."""
    content = b"# This image was built from a directory of packages.\n"
    if (source_dir / "sources.list").is_file():
        content = (source_dir / "sources.list").read_bytes()
    for path in (sources / "sources.list", tree / "etc/apt/sources.list"):
        path.write_bytes(content)


def unpack_kernel(
    staging: Path, tree: Path, sources: Path, architecture: Architecture, commands: Commands
) -> dict[str, str]:
    """Kernel, modules and busybox into `staging/kernel`; they are not part of the guest's packages."""
    folder, unpacked = staging / "kernel", staging / "unpacked"
    folder.mkdir()
    package = (sources / "kernel").read_text().strip()
    (sources / "kernel").unlink()
    for pattern in (f"{package}_*.deb", "busybox-static_*.deb"):
        found = sorted(sources.glob(pattern))
        if len(found) != 1:
            raise BuildError(f"there are {len(found)} files {pattern} instead of one")
        commands.run(
            ["dpkg-deb", "--extract", found[0], unpacked], what=f"unpacking {found[0].name}", timeout_s=UNPACK_S
        )
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise BuildError(f"{package} has {len(images)} kernels instead of one")
    version = images[0].name.removeprefix("vmlinuz-")
    for name, content in zip(
        ("vmlinuz", "vmlinux"), boot_kernels(images[0].read_bytes(), elf=architecture.vmlinux == "ELF"), strict=True
    ):
        (folder / name).write_bytes(content)
    busybox = next(path for path in (unpacked / "usr/bin/busybox", unpacked / "bin/busybox") if path.is_file())
    shutil.copyfile(busybox, folder / "busybox")
    modules = next(
        path for path in (unpacked / "usr/lib/modules" / version, unpacked / "lib/modules" / version) if path.is_dir()
    )
    # depmod is the guest's own: a host need not have it, and it is of the same time as the kernel
    inside = tree / "usr/lib/modules" / version
    inside.parent.mkdir(parents=True, exist_ok=True)
    modules.rename(inside)
    depmod(tree, version, commands)
    (folder / "modules").mkdir()
    inside.rename(folder / "modules" / version)
    shutil.rmtree(unpacked)
    return {"version": version, "package": package, "architecture": architecture.debian}


def depmod(tree: Path, version: str, commands: Commands) -> None:
    """Write the dependency data of the modules in the tree, by the tree's own depmod."""
    commands.run(
        ["chroot", tree, "depmod", "-a", version], what="finding the modules' dependencies", timeout_s=DEPMOD_S
    )


def installed_packages(tree: Path) -> dict[str, str]:
    """Name to version, from dpkg's own record."""
    found: dict[str, str] = {}
    for entry in (tree / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace").split("\n\n"):
        fields: dict[str, Any] = {}
        for line in entry.splitlines():
            name, separator, value = line.partition(": ")
            if separator and not line.startswith(" "):
                fields[name] = value
        if fields.get("Status", "").endswith(" installed"):
            found[str(fields["Package"])] = str(fields["Version"])
    return dict(sorted(found.items()))
