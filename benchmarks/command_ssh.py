"""The same command over a persistent ssh connection ÷ ours: how many times faster `exec` is than asyncssh.

Ours: `GuestClient.exec` of `/bin/true`, as in `exec`. Baseline: `connection.run("/bin/true")` on one asyncssh
connection to Debian's sshd on the loopback interface, which was started here with keys and a configuration of its own
(PAM as Debian has it, if we are root): each command is a new channel on the open connection, run by the user's login
shell. bash would read ~/.bashrc for it, which on some machines takes longer than all else; SHLVL keeps it from that, in
favour of the baseline. In the detail, `ssh_by_direct_spawn` is what the ratio would be if ours cost nothing beyond
asyncio's own spawning of the command. Needs `sshd` (package openssh-server); without it the benchmark fails, saying so.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import pathlib
import shutil
import socket
from collections.abc import AsyncIterator, Iterator

import asyncssh

from benchmarks.command_direct import REQUEST, TRUE, spawn
from benchmarks.guest import bundle_in, ended, running_guest, workspace
from benchmarks.measurement import Effort, Measurement, Target, interleaved, median, significant, spread, timed

BLOCK = 2
CONNECT_S = 30.0
SEPARATION_FOLDER = pathlib.Path("/run/sshd")  # Debian leaves making it to the service

CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM {pam}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
SetEnv SHLVL=9
LogLevel ERROR
"""


class Unavailable(Exception):
    """this machine lacks what a benchmark compares with"""


async def run(effort: Effort) -> list[Measurement]:
    with workspace() as folder:
        async with (
            ssh_connection(folder) as connection,
            running_guest(folder, bundle_in(folder)) as client,
        ):
            ours, baseline, direct = await interleaved(
                lambda: timed(lambda: client.exec(REQUEST), BLOCK),
                lambda: timed(lambda: connection.run(TRUE, check=True), BLOCK),
                lambda: timed(spawn, BLOCK),
                rounds=effort.count(100, 3),
                warm_up=5,
            )
    return [
        Measurement(
            name="exec_vs_asyncssh",
            value=median(ours) * 1e3,
            unit="ms",
            baseline=median(baseline) * 1e3,
            against=f"asyncssh {asyncssh.__version__}, a persistent connection to a local sshd; ratio is ssh ÷ ours",
            samples=len(ours),
            inverse=True,
            target=Target(5, at_most=False),
            detail={
                "ours_ms": spread(ours, 1e3),
                "baseline_ms": spread(baseline, 1e3),
                "direct_spawn_ms": spread(direct, 1e3),
                "ssh_by_direct_spawn": significant(median(baseline) / median(direct)),
            },
        )
    ]


@contextlib.asynccontextmanager
async def ssh_connection(folder: pathlib.Path) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection to an sshd of our own, both gone when the block is left."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if sshd is None:
        raise Unavailable("sshd is not installed (Debian package openssh-server)")
    port = free_port()
    client_key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "authorized_keys").write_bytes(client_key.export_public_key())
    host_key.write_private_key(str(folder / "host_key"))
    (folder / "host_key").chmod(0o600)
    (folder / "sshd_config").write_text(
        CONFIGURATION.format(port=port, folder=folder, pam="yes" if os.geteuid() == 0 else "no")
    )
    with separation_folder():
        process = await asyncio.create_subprocess_exec(sshd, "-D", "-e", "-f", str(folder / "sshd_config"))
        try:
            async with await connected(process, port, client_key, host_key) as connection:
                yield connection
        finally:
            await ended(process)


async def connected(
    process: asyncio.subprocess.Process, port: int, client_key: asyncssh.SSHKey, host_key: asyncssh.SSHKey
) -> asyncssh.SSHClientConnection:
    known_hosts = asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    async with asyncio.timeout(CONNECT_S):
        while process.returncode is None:
            try:
                return await asyncssh.connect(
                    "127.0.0.1",
                    port,
                    username=getpass.getuser(),
                    client_keys=[client_key],
                    known_hosts=known_hosts,
                    config=None,
                    agent_path=None,
                )
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)  # it tells nobody when it listens
    raise Unavailable(f"sshd ended with {process.returncode}; what it said is above")


@contextlib.contextmanager
def separation_folder() -> Iterator[None]:
    if os.geteuid() != 0 or SEPARATION_FOLDER.exists():
        yield
        return
    SEPARATION_FOLDER.mkdir(mode=0o755)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            SEPARATION_FOLDER.rmdir()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
