"""The effects of `vm0 setup`: finds out what this machine is, and installs Debian packages."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

from vm0.cli.config import complete_path
from vm0.cli.errors import CliError
from vm0.cli.setup_plan import Install, MachineFacts, needs, parse_os_release

OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
TUN = pathlib.Path("/dev/net/tun")
POLICY = pathlib.Path("/usr/sbin/policy-rc.d")
LISTS_S = 300.0  # to fetch the lists of packages
INSTALL_S = 1800.0
QUIETLY = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
APT_OPTIONS = ("--quiet", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2", "-o", "Dpkg::Use-Pty=0")
SHOWN_LINES = 12


def machine_facts() -> MachineFacts:
    """Of this machine, now; milliseconds."""
    complete_path()
    architecture = platform.machine()
    return MachineFacts(
        system=platform.system(),
        architecture=architecture,
        python=tuple(sys.version_info[:3]),
        root=os.geteuid() == 0,
        os_release=parse_os_release(_first_text(OS_RELEASE)),
        present=frozenset(need.program for need in needs(architecture) if _is_there(need.program)),
        has_tun=TUN.exists(),
    )


def install(action: Install, fraction: Callable[[float], None] = lambda _: None) -> None:
    """With apt-get, from the machine's own sources; a service that a package brings is not started.

    Blocks, bounded in time. Raises CliError with apt's last lines. After a failure it can be done again.
    """
    _apt(("update",), LISTS_S, lambda _: None)
    with _no_services():
        _apt(action.command[1:], INSTALL_S, fraction)


def _apt(words: tuple[str, ...], limit_s: float, fraction: Callable[[float], None]) -> None:
    reading, writing = os.pipe()
    argv = (*QUIETLY, "apt-get", *APT_OPTIONS, "-o", f"APT::Status-Fd={writing}", *words)
    with open(reading, encoding="utf-8", errors="replace") as lines:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, pass_fds=(writing,), text=True, errors="replace",
            )  # fmt: skip
        except OSError as exc:
            raise CliError(f"apt-get cannot be run: {exc.strerror}", hint="is this Debian?") from exc
        finally:
            os.close(writing)
        watcher = threading.Thread(target=_watch, args=(lines, fraction), name="apt status", daemon=True)
        watcher.start()
        with process:
            try:
                output, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                process.terminate()  # apt ends the program it is running, and can be run again
                raise CliError(
                    f"{' '.join(argv[:1])} did not end within {limit_s:g} s", hint="is there a network?"
                ) from None
        watcher.join()
    if process.returncode != 0:
        last = "".join(f"\n  | {line}" for line in output.strip().splitlines()[-SHOWN_LINES:])
        raise CliError(
            f"apt-get failed with exit code {process.returncode}{last}", hint="correct that, then run `vm0 setup` again"
        )


def _watch(lines: IO[str], fraction: Callable[[float], None]) -> None:
    """Of the whole, fetching counts as half and installing as the other: `dlstatus:N:PERCENT:text`."""
    for line in lines:
        kind, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            percent = float(rest.split(":")[1])
            fraction(percent / 200 if kind == "dlstatus" else 0.5 + percent / 200)


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Within, packages do not start what they bring (policy-rc.d); an administrator's own policy stays."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _is_there(program: str) -> bool:
    if "/" in program:
        return os.path.exists(program)
    return shutil.which(program) is not None


def _first_text(paths: tuple[str, ...]) -> str:
    for path in paths:
        with contextlib.suppress(OSError):
            return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    return ""
