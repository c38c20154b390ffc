"""`vsock-guest --connect ADDRESS …`: connect, serve, reconnect with back-off, until shut down."""

from __future__ import annotations

import os
import resource
import signal
import sys

from vm0.vsock_guest.identity import environment_of
from vm0.vsock_guest.link import HUNG_UP
from vm0.vsock_guest.loop import READ, Loop
from vm0.vsock_guest.server import MAX_COMMANDS, Server, Settings
from vm0.vsock_guest.transport import Port, check_address, connect, is_port, open_port

USAGE = """usage: vsock-guest --connect ADDRESS [options]
  --connect ADDRESS     vsock:CID:PORT, serial:NAME or unix:PATH
  --token-file PATH     read the boot token from there and delete the file
  --token-fd NUMBER     the boot token is in this file; a restore writes the new one there
  --build TEXT          the build of the guest code, told to the host
  --cgroup DIR          cgroup v2 directory of our own, in which each command gets a group
  --environment PATH    file of NAME=VALUE lines that every command's environment starts with, if it is there
  --user NAME           account of commands that name none (default: our own)
  --machine             this is a whole machine: clock, entropy and names may be set
  --subreaper           adopt orphans of our commands (when we are not below a PID 1 that does)
  --give-up-s SECONDS   exit when no connection served anything for this long (default: never)
"""
FIRST_RETRY_S, LAST_RETRY_S = 0.01, 1.0
OPEN_FILES = 65536
MAX_ENVIRONMENT = 64 * 1024  # bytes of the file; the rest is not read
MAX_TOKEN = 64  # bytes; what *ready* can carry
FILES_PER_COMMAND, OTHER_FILES = 4, 96  # descriptors; the others: our own, the transfers', and a command's at its start
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Guest:
    """The life around the connections. `serve` returns the exit code."""

    def __init__(self, address: str, settings: Settings, *, give_up_s: float | None, adopts: bool) -> None:
        self._address, self._give_up_s, self._adopts = address, give_up_s, adopts
        self._loop = Loop()
        self._server = Server(self._loop, settings, self._on_detached, self._on_closed)
        self._retry_s = FIRST_RETRY_S
        self._idle_s = 0.0
        self._port: Port | None = None
        self._code = 0

    def serve(self) -> int:
        self._watch_signals()
        self._connect()
        self._loop.run()
        return self._code

    def _connect(self) -> None:
        try:
            if not is_port(self._address):
                self._server.attach(connect(self._address))
                return
            if self._port is None:
                self._port = Port(self._loop, open_port(self._address))
        except OSError as exc:
            self._retry(str(exc))
        else:
            self._port.when_connected(self._server.attach)

    def _on_closed(self, why: str) -> None:
        if self._port is not None:
            self._port.released(hung_up=why == HUNG_UP)

    def _on_detached(self, why: str, served: bool) -> None:
        if self._server.shut_down:
            self._loop.stop()
        elif served or self._port is not None:  # a port tells when there is a new connection
            self._retry_s, self._idle_s = FIRST_RETRY_S, 0.0
            self._connect()
        else:
            self._retry(why)  # a connection that dies before it was used is no success: back off as for a failed one

    def _retry(self, why: str) -> None:
        if self._give_up_s is not None and self._idle_s >= self._give_up_s:
            sys.stderr.write(f"vsock-guest: giving up on {self._address}: {why}\n")
            self._code = 1
            self._loop.stop()
            return
        self._idle_s += self._retry_s
        self._loop.later(self._retry_s, self._connect)
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)

    def _watch_signals(self) -> None:
        """SIGTERM and SIGINT end everything that runs, then us; SIGCHLD lets a subreaper reap what it adopted."""
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)

        def on_signal(_events: int) -> None:
            numbers = set(os.read(read_end, 512))
            if signal.SIGCHLD in numbers and self._adopts:
                self._server.reap_adopted()
            if numbers & {signal.SIGTERM, signal.SIGINT} and not self._server.close("ended by a signal"):
                self._loop.stop()

        self._loop.watch(read_end, READ, on_signal)


def main(argv: list[str]) -> int:
    """Exit codes: 0 shut down, 1 gave up, 2 usage."""
    options = _options(argv)
    if options is None or "connect" not in options:
        sys.stderr.write(USAGE)
        return 2
    token = b""
    try:
        check_address(options["connect"])
        give_up_s = float(options["give-up-s"]) if "give-up-s" in options else None
        token_fd = int(options.get("token-fd", "-1"))
        if token_fd >= 0:
            token = os.pread(token_fd, MAX_TOKEN, 0)
        if "token-file" in options:
            with open(options["token-file"], "rb") as file:
                token = file.read()
            os.unlink(options["token-file"])
        environment = _environment(options.get("environment", ""))
    except (ValueError, OSError) as exc:
        sys.stderr.write(f"vsock-guest: {exc}\n{USAGE}")
        return 2
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    if "subreaper" in options:
        _become_subreaper()
    settings = Settings(
        token=token,
        token_fd=token_fd,
        build=options.get("build", ""),
        cgroup_root=options.get("cgroup", ""),
        user=options.get("user", ""),
        environment=environment,
        whole_machine="machine" in options,
        max_commands=max(1, min(MAX_COMMANDS, (open_files - OTHER_FILES) // FILES_PER_COMMAND)),
    )
    return Guest(options["connect"], settings, give_up_s=give_up_s, adopts="subreaper" in options).serve()


def _options(argv: list[str]) -> dict[str, str] | None:
    """By hand: argparse would cost 10 ms of a start-up that is waited for."""
    flags = {"machine", "subreaper"}
    known = {"connect", "token-file", "token-fd", "build", "cgroup", "environment", "user", "give-up-s"} | flags
    options: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        name = word[2:]
        if not word.startswith("--") or name not in known:
            return None
        value = "" if name in flags else next(words, None)
        if value is None:
            return None
        options[name] = value
    return options


def _environment(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            return environment_of(os.fsdecode(file.read(MAX_ENVIRONMENT)))
    except FileNotFoundError:  # also of the path ""
        return {}


def _become_subreaper() -> None:
    import ctypes  # only here: it costs 8 ms, and a VM's guest does not need it

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(code)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
