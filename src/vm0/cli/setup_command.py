"""`vm0 setup`: makes this machine ready for virtual machines, and says what it is ready for then."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sys
from collections.abc import Sequence

from vm0.cli.config import Settings
from vm0.cli.errors import UsageError
from vm0.cli.local_sandboxes import Wanted, free_state_dir, local_config
from vm0.cli.run_summary import runner_words
from vm0.cli.setup_apply import machine_facts
from vm0.cli.setup_plan import MachineFacts
from vm0.cli.steps import Steps, steps_for
from vm0.cli.table import print_json
from vm0.cli.vm_preparation import agreed, asked, prepare_backend
from vm0.contracts.runs import Isolation
from vm0.image import BuildOptions
from vm0.runner.backends import make_factory
from vm0.runner.config import RunnerConfig


def setup(
    *,
    yes: bool,
    images: Sequence[str],
    offline: bool,
    from_dir: pathlib.Path | None,
    state_dir: pathlib.Path | None,
    as_json: bool,
) -> int:
    """Packages, then each image, then its snapshot. Idempotent; a second or two when all is there."""
    if from_dir is not None and not from_dir.is_dir():
        raise UsageError(f"{from_dir} is no directory", hint="`vm0 image build --save-sources DIR` makes one")
    settings = Settings.from_environment()
    home = state_dir.absolute() if state_dir is not None else settings.state_dir
    build = BuildOptions(offline=offline, from_dir=from_dir)
    facts: dict[str, dict[str, str]] = {}
    with contextlib.closing(steps_for(plain=settings.plain)) as steps:
        steps.note(machine_words(machine_facts()))
        for image in images:
            wanted = Wanted(image=image)
            prepare_backend(home, wanted, steps, consent=agreed if yes else asked, build=build)
            facts[image] = make_snapshot(home, wanted, steps)
    if as_json:
        print_json({"home": str(home), "images": facts})
        return 0
    for image, found in facts.items():
        print(f"image {image}: {found['image']}, starts from {found['start']}", file=sys.stderr)
    last = facts[images[-1]]
    print(f"`vm0 run` uses {runner_words('auto', last['backend'], Isolation(last['isolation']), last)}")
    return 0


def make_snapshot(home: pathlib.Path, wanted: Wanted, steps: Steps) -> dict[str, str]:
    """Have the snapshot that runs of this home start from; the facts of the backend. Half a minute if it is missing.

    Raises SandboxError.
    """
    with free_state_dir(home) as state_dir:
        return asyncio.run(_entered(local_config(home, state_dir, wanted), steps))


async def _entered(config: RunnerConfig, steps: Steps) -> dict[str, str]:
    async with make_factory(config, steps.step) as factory:
        return dict(factory.describe())


def machine_words(facts: MachineFacts) -> str:
    python = ".".join(map(str, facts.python))
    return f"{facts.system} {facts.architecture}, {facts.distribution}, Python {python}"
