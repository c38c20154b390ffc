"""Starting a command's process: the fast way where nothing has to happen between fork and exec, else the general one.

The fast way is `posix_spawn`, which does not copy the guest's page tables (a plain fork costs more than running a small
command). It cannot join a cgroup in the child, so the guest itself steps into the command's group for that moment; and
it cannot change the directory, so the guest does. Both are safe because one thread starts all commands and the file
transfers use absolute paths. Another user, or a terminal, needs code in the child and takes the general way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vm0.vsock_guest.containment import Containment
    from vm0.vsock_guest.identity import Identity

RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; a command must not inherit that


def spawn(
    argv: Sequence[str],
    streams: tuple[int, int, int],
    *,
    cwd: str,
    environment: dict[str, str],
    identity: Identity,
    containment: Containment,
    terminal: bool,
) -> int:
    """Start it, in its process group (or session, with a terminal) and its containment; returns its pid.

    Raises OSError when it cannot start: no such program or directory, no permission.
    """
    with containment.home.unprotected():
        if identity.uid is None and not terminal:
            return _spawn_fast(argv, streams, cwd, environment, containment)
        return _fork(argv, streams, cwd, environment, identity, containment, terminal)


def _spawn_fast(
    argv: Sequence[str], streams: tuple[int, int, int], cwd: str, environment: dict[str, str], containment: Containment
) -> int:
    os.chdir(cwd)
    try:
        program = find_program(argv[0], environment.get("PATH", os.defpath))
        with containment.home.left_for(containment.join_fd):
            return os.posix_spawn(
                program,
                list(argv),
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)],
                setpgroup=0,
                setsigdef=RESET_SIGNALS,
            )
    finally:
        os.chdir("/")


def _fork(
    argv: Sequence[str],
    streams: tuple[int, int, int],
    cwd: str,
    environment: dict[str, str],
    identity: Identity,
    containment: Containment,
    terminal: bool,
) -> int:
    import subprocess  # only here: it costs 10 ms of a start-up that is waited for

    join_fd = containment.join_fd

    def in_child() -> None:
        """With the new user's rights already: nothing but system calls on open descriptors."""
        if join_fd >= 0:
            os.write(join_fd, b"0")
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        process = subprocess.Popen(
            list(argv),
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            cwd=cwd,
            env=environment,
            user=identity.uid,
            group=identity.gid,
            extra_groups=identity.groups,
            start_new_session=terminal,
            process_group=None if terminal else 0,
            preexec_fn=in_child if join_fd >= 0 or terminal else None,
        )
    except subprocess.SubprocessError as exc:
        raise OSError(errno.EIO, f"between fork and exec: {exc}") from exc
    process.returncode = 0  # the command reaps it, by pidfd and with its resource usage
    return process.pid


def find_program(name: str, path: str) -> str:
    """What execvp would run: `name` itself if it has a slash, else the first executable file of that name in `path`."""
    if "/" in name:
        return name
    denied = False
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            denied = True
    code = errno.EACCES if denied else errno.ENOENT
    raise OSError(code, os.strerror(code), name)
