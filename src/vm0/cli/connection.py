"""Which server a command talks to, and with which token: as the options say, else as the environment says."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vm0.cli.api import ApiClient
from vm0.cli.config import Secret, Settings
from vm0.cli.errors import CliError, UsageError

MAX_TOKEN_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that somebody else runs."""

    url: str
    token: Secret


def remote(settings: Settings, server: str, token_file: pathlib.Path | None, token: str = "") -> Remote | None:
    """The server named by the options or the environment; None: the one of this machine."""
    url = server or settings.server_url
    if not url:
        if token_file is not None:
            raise UsageError("--token-file goes with --server", hint="name the server: --server http://HOST:8700")
        return None
    found = Secret(token) or (Secret(token_in(token_file)) if token_file is not None else settings.token)
    if not found:
        raise UsageError(
            f"no token for {url}",
            hint="set VM0_TOKEN or give --token-file; `vm0 token create` on the server's machine makes one",
        )
    if not found.isascii() or not found.isprintable() or " " in found:
        raise UsageError("the token holds characters no token has", hint="copy it again, without quotes and spaces")
    return Remote(checked_url(url), found)


def checked_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"--server {url!r} is no http address", hint="for example --server http://127.0.0.1:8700")
    return url.rstrip("/")


def token_in(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        text = file.read(MAX_TOKEN_FILE_BYTES + 1)
    if len(text) > MAX_TOKEN_FILE_BYTES:
        raise CliError(f"{path}: is no token file, it is too long", hint="it must hold the token and nothing else")
    return text.decode("ascii", "replace").strip()


@contextlib.asynccontextmanager
async def connected(settings: Settings, server: str, token_file: pathlib.Path | None) -> AsyncIterator[ApiClient]:
    """A client of the named server, or of this machine's, which is started for as long as nobody else has it."""
    named = remote(settings, server, token_file)
    if named is not None:
        async with ApiClient(named.url, named.token) as client:
            yield client
        return
    from vm0.cli.local import local_server

    def say(text: str) -> None:
        print(f"vm0: {text}", file=sys.stderr)

    async with local_server(settings.state_dir, say) as local, ApiClient(local.url, local.user_token) as client:
        yield client
