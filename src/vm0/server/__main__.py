"""`python -m vm0.server --state-dir DIR [--host H] [--port P]`: the server alone; `vm0 server` is the friendly way."""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import sys

from vm0.server.config import ServerConfig
from vm0.server.errors import ServerError
from vm0.server.service import ServerHandle, serve


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; the address goes to stdout when it can be used."""
    parser = argparse.ArgumentParser(prog="python -m vm0.server", description="vm0's control plane")
    parser.add_argument("--state-dir", type=pathlib.Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--lease-ttl-s", type=float)
    options = parser.parse_args(argv)

    def announce(handle: ServerHandle) -> None:
        sys.stdout.write(f"{handle.url}\n")
        sys.stdout.flush()

    try:
        config = ServerConfig.from_env(state_dir=options.state_dir, lease_ttl_s=options.lease_ttl_s)
        asyncio.run(serve(config, options.host, options.port, announce))
    except ServerError as exc:
        sys.stderr.write(f"error: {exc}\n" + (f"  hint: {exc.hint}\n" if exc.hint else ""))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
