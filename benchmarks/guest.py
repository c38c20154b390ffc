"""A real guest endpoint as a child process: `vsock-guest` from the bundle over a Unix socket, as backends start it."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator

from vm0.guest_bundle import GuestBundle, build_bundle
from vm0.vsock_host import GuestClient, GuestListener, UnixAddress

START_S = 30.0
STOP_S = 10.0
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@contextlib.contextmanager
def workspace(parent: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """A private folder with a short name (socket paths have 107 bytes) that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vm0-bench-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


def bundle_in(folder: pathlib.Path) -> GuestBundle:
    return build_bundle(folder / "bundle")


@contextlib.asynccontextmanager
async def running_guest(
    folder: pathlib.Path, bundle: GuestBundle, *, name: str = "guest", options: tuple[str, ...] = ()
) -> AsyncIterator[GuestClient]:
    """A guest after its handshake; ended and reaped when the block is left."""
    token = secrets.token_bytes(32)
    token_file, socket_path = folder / f"{name}.token", folder / f"{name}.sock"
    token_file.write_bytes(token)
    async with GuestListener(UnixAddress(str(socket_path)), token=token, build=bundle.build) as listener:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(bundle.path), "vsock-guest"),
            *("--connect", f"unix:{socket_path}", "--token-file", str(token_file)),
            *("--build", bundle.build, "--give-up-s", "3", "--subreaper", *options),
            stdin=asyncio.subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        client = None
        try:
            client = await listener.accept(START_S)
            yield client
        finally:
            if client is not None:
                client.close()
            await ended(process)


async def ended(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL if that does not help; reaped afterwards."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
