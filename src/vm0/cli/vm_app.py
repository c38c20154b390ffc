"""The commands about virtual machines. What a command needs is imported when it is called, as in `app`."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from vm0.cli.command_parts import Architecture, JsonOption, StateDirOption, YesOption, command_group

image_app = command_group("Build and show the images that virtual machines start from.")
snapshot_app = command_group("Make and show the snapshots that virtual machines are restored from.")

KeysArgument = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Key, or its unique beginning.")]


@image_app.command("build")
def image_build(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE|FILE.toml", help="A shipped recipe, or a file with one.")
    ] = "base",
    arch: Annotated[Architecture | None, typer.Option(help="Machine to build for. [this one]")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing: the build has no network at all.")] = False,
    from_dir: Annotated[
        pathlib.Path | None,
        typer.Option("--from", metavar="DIR", help="Take packages (.deb, .tgz) from here instead of the network."),
    ] = None,
    save_sources: Annotated[
        pathlib.Path | None, typer.Option(metavar="DIR", help="Copy the packages to DIR, for --from on another host.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Use nothing that is cached, get the newest packages.")
    ] = False,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Build the image of a recipe, unless it is there, and print its directory. Needs root."""
    from vm0.cli import image_command

    return image_command.build(
        recipe, arch=arch, offline=offline, from_dir=from_dir, save_sources=save_sources, fresh=fresh,
        state_dir=state_dir, as_json=json,
    )  # fmt: skip


@image_app.command("ls")
def image_ls(state_dir: StateDirOption = None, json: JsonOption = False) -> int:
    """List images, newest first."""
    from vm0.cli import image_command

    return image_command.list_images(state_dir=state_dir, as_json=json)


@image_app.command("show")
def image_show(
    name: Annotated[str, typer.Argument(metavar="KEY|RECIPE", help="Key, its unique beginning, or a recipe's name.")],
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Show an image: what it was made from, versions, sizes; the newest one of a recipe."""
    from vm0.cli import image_command

    return image_command.show(name, state_dir=state_dir, as_json=json)


@image_app.command("rm")
def image_rm(
    keys: KeysArgument = None,
    old: Annotated[bool, typer.Option("--old", help="All whose guest code is not that of this vm0.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Also the trees that make the next build of a recipe quick.")
    ] = False,
    state_dir: StateDirOption = None,
) -> int:
    """Remove images. Running virtual machines keep theirs until they end."""
    from vm0.cli import image_command

    return image_command.remove(keys or [], old=old, cache=cache, state_dir=state_dir)


def setup(
    image: Annotated[
        list[str] | None, typer.Option(metavar="RECIPE", help="Image to build; may be given more than once. [base]")
    ] = None,
    yes: YesOption = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: no package, nothing for an image.")
    ] = False,
    from_dir: Annotated[
        pathlib.Path | None,
        typer.Option("--from", metavar="DIR", help="Take an image's packages (.deb, .tgz) from here."),
    ] = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Make this machine ready for virtual machines. Needs root.

    Installs the Debian packages that are missing (asking first), builds the image, boots it once, makes its snapshot,
    and says which backend and isolation tier `vm0 run` will use, and why. Safe to repeat, and quick when all is there.
    """
    from vm0.cli import setup_command

    return setup_command.setup(
        yes=yes, images=image or ["base"], offline=offline, from_dir=from_dir, state_dir=state_dir, as_json=json
    )


@snapshot_app.command("build")
def snapshot_build(
    image: Annotated[str, typer.Argument(metavar="RECIPE|KEY", help="Image of the virtual machine.")] = "base",
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Make the snapshot of an image, unless it is there, and print its directory. Needs root.

    Its processors, memory and disk are those of a runner's settings (VM0_RUNNER_SANDBOX_MEMORY_MIB, ...).
    """
    from vm0.cli import snapshot_command

    return snapshot_command.build(image, state_dir=state_dir, as_json=json)


@snapshot_app.command("ls")
def snapshot_ls(state_dir: StateDirOption = None, json: JsonOption = False) -> int:
    """List snapshots, newest first."""
    from vm0.cli import snapshot_command

    return snapshot_command.list_snapshots(state_dir=state_dir, as_json=json)


@snapshot_app.command("show")
def snapshot_show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key, or its unique beginning.")],
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Show a snapshot and everything that decides which machines can start from it."""
    from vm0.cli import snapshot_command

    return snapshot_command.show(key, state_dir=state_dir, as_json=json)


@snapshot_app.command("rm")
def snapshot_rm(
    keys: KeysArgument = None,
    old: Annotated[bool, typer.Option("--old", help="Those that nothing can start from any more.")] = False,
    state_dir: StateDirOption = None,
) -> int:
    """Remove snapshots. A runner that uses one must be started anew; the snapshot is made again then."""
    from vm0.cli import snapshot_command

    return snapshot_command.remove(keys or [], old=old, state_dir=state_dir)


def benchmark(
    image: Annotated[str, typer.Option(metavar="RECIPE", help="Image of the virtual machines.")] = "base",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer of each: rougher numbers, sooner.")] = False,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Measure virtual machines on this host: start, commands, files, forks, memory. Needs root."""
    from vm0.cli import benchmark_command

    return benchmark_command.benchmark(image=image, quick=quick, state_dir=state_dir, as_json=json)
