"""What a recipe puts on top of its packages: npm packages, users, files, commands, and what every guest of ours has."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from vm0.image.architectures import Architecture
from vm0.image.command import Commands, missing_program
from vm0.image.errors import BuildError
from vm0.image.initramfs import plain_module
from vm0.image.kernel_modules import LOADABLE, NEEDED, WANTED, ModuleIndex, load_order, module_name, parse_index
from vm0.image.packages import depmod
from vm0.image.recipe import NpmPackage, Recipe, User
from vm0.image.tree import inside, write
from vm0.microvm.guest import HOSTNAME

COMMAND_S = 1800.0
USERADD_S = 60.0
NPM_S = 600.0
UNPACK_S = 120.0
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NPM_FOLDER = "/opt/npm"
KERNEL_FILES = ("modules.builtin", "modules.builtin.modinfo", "modules.order")

# What programs expect around them; all of it is gone with the mount namespace. $1 is the tree, $2 the command. The tree
# has device nodes of its own, so that a recipe does not see this machine's disks.
IN_TREE = """
mount -t proc proc "$1/proc" && mount -t tmpfs tmp "$1/tmp" && mount -t tmpfs run "$1/run" &&
mount -t tmpfs shm "$1/dev/shm" &&
if [ -e /etc/resolv.conf ]; then mount --bind /etc/resolv.conf "$1/etc/resolv.conf"; fi &&
exec chroot "$1" /bin/sh -ec "$2"
"""


def customize(
    tree: Path,
    recipe: Recipe,
    architecture: Architecture,
    *,
    npm_files: Path,
    from_dir: Path | None,
    commands: Commands,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Returns the versions of npm packages by name. The order: what is in it, who uses it, their files, commands."""
    write(tree, "/etc/hostname", f"{HOSTNAME}\n".encode())
    write(tree, "/etc/resolv.conf", b"")
    write(tree, "/etc/machine-id", b"")
    versions = {}
    for package in recipe.npm:
        name = package.package.replace("{cpu}", architecture.npm)
        progress(f"adding npm package {name}@{package.version}")
        archive = fetched(name, package.version, npm_files, from_dir, commands)
        versions[name] = unpack_npm(tree, name, package, archive, commands)
    for user in recipe.users:
        add_user(tree, user, commands)
    for file in recipe.files:
        write(tree, file.path, file.content, file.mode, owner_in(tree, file.owner))
    for number, command in enumerate(recipe.commands, start=1):
        progress(f"running command {number} of {len(recipe.commands)}")
        run_in(tree, command, commands)
    write(tree, "/etc/resolv.conf", b"")  # a command may have written its own
    write(tree, "/etc/machine-id", b"")
    return versions


def run_in(tree: Path, command: str, commands: Commands) -> None:
    commands.run(
        ["env", "HOME=/root", f"PATH={GUEST_PATH}", "/bin/sh", "-c", IN_TREE, "sh", tree, command],
        what=f"command {command.splitlines()[0][:80]!r} of the recipe",
        timeout_s=COMMAND_S,
        hint="it runs as root, with /bin/sh, in the image's tree",
    )


def add_user(tree: Path, user: User, commands: Commands) -> None:
    inside(tree, user.home).parent.mkdir(parents=True, exist_ok=True)
    options = ("--create-home", "--user-group", "--uid", str(user.uid), "--home-dir", user.home, "--shell", user.shell)
    commands.run(["chroot", tree, "useradd", *options, user.name], what=f"adding user {user.name}", timeout_s=USERADD_S)
    if user.sudo:
        write(tree, f"/etc/sudoers.d/vm0-{user.name}", f"{user.name} ALL=(ALL:ALL) NOPASSWD: ALL\n".encode(), 0o440)


def owner_in(tree: Path, name: str) -> tuple[int, int]:
    """User and group id in the guest, whose numbers mean something else here."""
    for line in (tree / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2]), int(fields[3])
    raise BuildError(f"the image has no user {name}")


def fetched(name: str, version: str, folder: Path, from_dir: Path | None, commands: Commands) -> Path:
    """The package's archive, in `folder`: from the directory if it has one, else by npm. Raises BuildError."""
    prefix = name.removeprefix("@").replace("/", "-")
    if from_dir is not None and (found := _archive_in(from_dir, prefix, version)) is not None:
        return Path(shutil.copyfile(found, folder / found.name))
    if commands.offline:
        where = (
            f"{from_dir} has no {prefix}-{version}.tgz" if from_dir is not None else f"npm package {name} is not here"
        )
        raise BuildError(where, hint="fill a directory by a build with --save-sources, and give it with --from")
    if missing_program("npm"):
        raise BuildError(
            f"npm is not installed, and the recipe has the npm package {name}",
            hint="install it (apt-get install npm), or give a directory that has the package's .tgz with --from",
        )
    answer = commands.run(
        ["npm", "pack", f"{name}@{version}", "--json", "--ignore-scripts", "--pack-destination", folder],
        what=f"fetching npm package {name}@{version}",
        timeout_s=NPM_S,
        hint="is there a network? does this version exist?",
        answer=True,
        cwd=folder,
    )
    commands.note(answer.decode(errors="replace"))
    if (found := _archive_in(folder, prefix, version)) is None:
        raise BuildError(f"npm made no archive of {name}@{version}", log=str(commands.log))
    return found


def _archive_in(folder: Path, prefix: str, version: str) -> Path | None:
    """Of this version, or the newest for a word such as `latest`."""
    pattern = re.compile(re.escape(prefix) + r"-(\d[^/]*)\.tgz")
    found = {match[1]: path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    if version[0].isdigit():
        return found.get(version)
    return found[max(found, key=_version_order)] if found else None


def _version_order(version: str) -> tuple[tuple[int, ...], bool, str]:
    """A release comes after its candidates."""
    numbers, candidate, _ = version.partition("-")
    return tuple(map(int, re.findall(r"\d+", numbers))), not candidate, version


def unpack_npm(tree: Path, name: str, package: NpmPackage, archive: Path, commands: Commands) -> str:
    """Unpack into /opt/npm, link the commands; returns the version."""
    folder = inside(tree, f"{NPM_FOLDER}/{name}")
    folder.mkdir(parents=True)
    commands.run(
        [
            "tar",
            "--extract",
            "--gzip",
            "--no-same-owner",
            "--strip-components=1",
            "--file",
            archive,
            "--directory",
            folder,
        ],
        what=f"unpacking {archive.name}",
        timeout_s=UNPACK_S,
    )
    for command, path in package.bin.items():
        program = folder / path
        if program.is_symlink() or not program.is_file():
            raise BuildError(f"npm package {name} has no file {path}", hint="correct `bin` in the recipe")
        program.chmod(0o755)
        link = inside(tree, f"/usr/local/bin/{command}")
        link.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(link):
            raise BuildError(f"npm package {name}: the image has a command {command} already", hint="name it otherwise")
        link.symlink_to(f"{NPM_FOLDER}/{name}/{path}")
    return str(json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"])


def install_modules(tree: Path, modules: Path, commands: Commands) -> None:
    """The few modules that a running guest may ask for, so that `modprobe` finds them with what they need."""
    index = index_of(modules)
    chosen = load_order(index, NEEDED, (*WANTED, *LOADABLE))
    target = tree / "usr/lib/modules" / modules.name
    for module in chosen:
        place = target / re.sub(r"\.ko(\.\w+)?$", ".ko", module.file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(plain_module(module.file, (modules / module.file).read_bytes()))
    for name in KERNEL_FILES:
        if (modules / name).is_file():
            lines = (modules / name).read_bytes()
            if name == "modules.order":  # else depmod warns of each that is not there
                wanted = {module.name for module in chosen}
                lines = b"".join(
                    line for line in lines.splitlines(True) if module_name(line.decode().strip()) in wanted
                )
            (target / name).write_bytes(lines)
    depmod(tree, modules.name, commands)


def index_of(modules: Path) -> ModuleIndex:
    """The dependency data in a directory of modules."""

    def text(name: str) -> str:
        path = modules / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    return parse_index(
        dep=text("modules.dep"),
        softdep=text("modules.softdep"),
        alias=text("modules.alias"),
        builtin=text("modules.builtin"),
    )
