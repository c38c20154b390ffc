"""`vm0 runner start`: execute the runs of a server on this host."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import sys

from vm0.cli.config import Settings, complete_path
from vm0.cli.errors import UsageError


def start(
    *,
    config: pathlib.Path | None,
    server: str,
    token: str,
    token_file: pathlib.Path | None,
    group: str,
    backend: str | None,
    max_concurrent: int | None,
    state_dir: pathlib.Path | None,
) -> int:
    """Run until SIGTERM or an interrupt. Options win over the environment, and that over the file.

    A snapshot that is missing is made first; an image or a package is not, that is what `vm0 setup` is for.
    """
    from vm0.cli.local_sandboxes import store_defaults
    from vm0.runner.config import RunnerConfig
    from vm0.runner.service import serve

    if token and token_file is not None:
        raise UsageError(
            "--token and --token-file exclude each other", hint="prefer --token-file: arguments are public"
        )
    settings = Settings.from_environment()
    if token_file is not None:
        from vm0.cli.connection import token_in

        token = token_in(token_file)
    flags = {
        "server_url": server or None,
        "token": token or None,
        "group": group or None,
        "backend": backend,
        "max_concurrent": max_concurrent,
        "state_dir": state_dir or settings.state_dir / "runner",
    }
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    complete_path()
    asyncio.run(serve(RunnerConfig.load(file=config, flags=flags, defaults=store_defaults(settings.state_dir))))
    return 0
