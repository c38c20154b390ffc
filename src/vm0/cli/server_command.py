"""`vm0 server` and `vm0 token create`: the server of a state directory."""

from __future__ import annotations

import asyncio
import json
import logging
import pathlib
import sys
from typing import cast

from vm0.cli.config import Settings
from vm0.cli.local import announced, server_dir


def serve(*, host: str, port: int, state_dir: pathlib.Path | None) -> int:
    """Run until SIGTERM or an interrupt; requests under way are finished first."""
    home = state_dir.absolute() if state_dir is not None else Settings.from_environment().state_dir
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    asyncio.run(_serve(home, host, port))
    return 0


async def _serve(home: pathlib.Path, host: str, port: int) -> None:
    from vm0.cli.interrupts import SIGNALS

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.set)
    async with announced(home, host, port) as url:
        print(url, flush=True)
        await stop.wait()


def make_token(*, kind: str, state_dir: pathlib.Path | None, as_json: bool) -> int:
    from vm0.server.tokens import TokenKind, create_token

    home = state_dir.absolute() if state_dir is not None else Settings.from_environment().state_dir
    token = create_token(server_dir(home), cast(TokenKind, kind))
    print(json.dumps({"kind": kind, "token": token}) if as_json else token)
    return 0
