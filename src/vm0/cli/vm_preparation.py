"""What must be there before a virtual machine can start here: Debian packages, and the image of a recipe.

Both are made here if they may be. The snapshot is made by whoever enters the backend's factory: it needs a running one.
"""

from __future__ import annotations

import asyncio
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Mapping

from vm0.cli.errors import CliError
from vm0.cli.local_sandboxes import Wanted, free_state_dir, local_config, private_home
from vm0.cli.setup_apply import install, machine_facts
from vm0.cli.setup_plan import Install, Purpose, Refuse, plan_packages
from vm0.cli.steps import Steps
from vm0.image import BuildOptions, Image, ImageStore, Recipe, build_image, load_recipe
from vm0.runner.backends import NAME_PROCESS, ImageMissing, make_factory
from vm0.sandbox import BackendUnavailable

Consent = Callable[[Mapping[str, str]], bool]  # to install these packages, each with what it is for


def prepare_backend(home: pathlib.Path, wanted: Wanted, steps: Steps, *, consent: Consent, build: BuildOptions) -> None:
    """Have what a factory with virtual machines needs; blocks for a minute or two the first time, else it is quick.

    Raises an error with a hint (BackendUnavailable, ImageError, CliError) that names what is missing.
    """
    config = local_config(home, home / "runner", wanted)
    store = ImageStore(config.images_dir)
    missing = _is_missing(store, wanted.image)
    prepare_packages(
        _purposes(wanted.image, build) if missing else {Purpose.RUN}, steps, consent=consent, offline=build.offline
    )
    if missing:
        private_home(home)
        steps.note(f"image {wanted.image} is built now, and kept in {store.root}")
        verified_build(
            store, load_recipe(wanted.image), architecture=platform.machine(), home=home, steps=steps, options=build
        )
    make_factory(config)


def _purposes(image: str, build: BuildOptions) -> set[Purpose]:
    found = {Purpose.RUN, Purpose.BUILD}
    if load_recipe(image).npm and not build.offline and build.from_dir is None:
        found.add(Purpose.NPM)
    return found


def _is_missing(store: ImageStore, name: str) -> bool:
    """Whether it has to be built; raises BackendUnavailable for one that cannot be."""
    from vm0.runner.backends.qemu import find_image

    try:
        find_image(store, name)
    except ImageMissing:
        return True
    return False


def prepare_packages(purposes: Iterable[Purpose], steps: Steps, *, consent: Consent, offline: bool) -> None:
    """Install the Debian packages that are missing, if `consent` is given. Raises CliError with what is missing."""
    for action in plan_packages(machine_facts(), purposes=purposes, offline=offline):
        match action:
            case Refuse(problem, hint):
                raise CliError(problem, hint=f"{hint}; or {NAME_PROCESS}")
            case Install(packages):
                steps.pause()
                for package, why in packages.items():
                    steps.note(f"missing: {package}, {why}")
                if not consent(packages):
                    raise CliError(
                        f"virtual machines need {len(packages)} more packages: {' '.join(packages)}",
                        hint=f"let `vm0 setup` install them (--yes does not ask); or {NAME_PROCESS}",
                    )
                steps.step(f"installing {' '.join(packages)}")
                install(action, steps.fraction)


def verified_build(
    store: ImageStore,
    recipe: Recipe,
    *,
    architecture: str,
    home: pathlib.Path,
    steps: Steps,
    options: BuildOptions | None = None,
) -> Image:
    """The one door through which commands build: an image is booted once before it gets its place.

    Blocks. Raises ImageError, SandboxError.
    """
    from vm0.runner.backends.qemu import boot_once, check_machine

    def verify(image: Image) -> None:
        try:
            check_machine(architecture)
        except BackendUnavailable as exc:
            steps.note(f"the image was not booted to check it: {exc}")
            return
        with free_state_dir(home) as state_dir:
            asyncio.run(boot_once(image, state_dir / "qemu"))

    return build_image(store, recipe, architecture=architecture, verify=verify, progress=steps.step, options=options)


def asked(packages: Mapping[str, str]) -> bool:
    """Ask on the terminal; no terminal is a no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"vm0: install {len(packages)} packages with apt-get? [Y/n] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().lower() in ("\n", "y\n", "yes\n")  # the end of input is no yes


def agreed(packages: Mapping[str, str]) -> bool:
    """`--yes`."""
    return True
