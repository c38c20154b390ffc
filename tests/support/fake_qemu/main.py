"""The program: checks what it was given, then serves monitor and guest until it is ended."""

from __future__ import annotations

import _thread
import fcntl
import os
import select
import signal
import socket
import sys
import time

from tests.support.fake_qemu.arguments import Arguments, UsageError, descriptor
from tests.support.fake_qemu.faults import read_faults
from tests.support.fake_qemu.guest import Guest
from tests.support.fake_qemu.machine import Machine
from tests.support.fake_qemu.monitor import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "QEMU emulator version 7.2.0 (fake)"
PROBE_LINE = b"vm0-probe-ok\n"
TUNGETIFF = 0x800454D2  # include/uapi/linux/if_tun.h
IFF_VNET_HDR = 0x4000
MIB = 1024 * 1024
GREETED = b"a fake guest boots\n"


class Fake:
    """One machine and its ends."""

    def __init__(self, arguments: Arguments, faults: dict[str, Any]) -> None:
        self._arguments, self._faults = arguments, faults
        self._began = time.monotonic()
        self._console = _socket_of(arguments, "console")
        control, self._link = _socket_of(arguments, "monitor"), _socket_of(arguments, "link")
        self._machine = Machine(arguments)
        self._monitor = Monitor(self._machine, control, faults, changed=self._watch, failed=self._cannot_load)
        self._guest = Guest(self._machine, self._link, faults, lambda: os._exit(0))
        self._control = control
        self._poll = select.poll()
        self._linked = True

    def run(self) -> None:
        """Until something exits."""
        if self._faults.get("ignore_sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._poll.register(self._control, select.POLLIN)
        self._monitor.greet()
        if "exit_after_greeting" in self._faults:
            sys.exit(self._faults["exit_after_greeting"])
        for where, mib in self._faults.get("flood", {}).items():
            fd = self._console.fileno() if where == "console" else 2
            _thread.start_new_thread(_flood, (fd, mib))
        if self._machine.status == "running":
            self._boot()
        while True:
            for fd, _ in self._poll.poll(self._next_ms()):
                if fd == self._control.fileno() and not self._monitor.read():
                    self._poll.unregister(self._control)
                if fd == self._link.fileno() and not self._guest.read():
                    self._linked = False
                    self._watch()

    def _boot(self) -> None:
        try:
            self._console.sendall(GREETED)
        except ConnectionError:
            pass
        root = self._arguments.drives()[0][0]
        self._guest.boot(os.pread(root, 128, 0).decode().strip())
        self._watch()

    def _watch(self) -> None:
        """The guest hears its link only while the machine runs."""
        if self._linked and self._machine.status == "running":
            self._poll.register(self._link, select.POLLIN)
        else:
            try:
                self._poll.unregister(self._link)
            except KeyError:
                pass

    def _next_ms(self) -> int | None:
        """Until when nothing happens by itself; does what is due."""
        due = self._monitor.migrate_on()
        times = [] if due is None else [int(due * 1000) + 1]
        if (limit := self._faults.get("die_after_ms")) is not None:
            left = limit - int((time.monotonic() - self._began) * 1000)
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            times.append(left)
        return min(times, default=None)

    @staticmethod
    def _cannot_load(why: str) -> None:
        """QEMU before 9.1 ends, and has told the monitor no more than that it failed."""
        sys.exit(f"{sys.argv[0]}: {why}")


def main() -> int:
    """Exit code 1, with why on stderr, for what QEMU would refuse; and for what it would not, but should not get."""
    argv = sys.argv[1:]
    if argv == ["--version"]:
        print(VERSION)
        return 0
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    faults = read_faults(folder, incoming="-incoming" in argv)
    if "exit_at_start" in faults:
        return int(faults["exit_at_start"])
    try:
        arguments = Arguments(argv)
        _check_privilege()
        for option in ("-kernel", "-initrd"):
            path = arguments.texts[option]
            descriptor(path)
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        if arguments.kernel_parameters.get("vm0.probe"):
            _socket_of(arguments, "console").sendall(PROBE_LINE)
            return 0
        _check_descriptors(arguments)
        Fake(arguments, faults).run()
    except (UsageError, OSError, KeyError) as exc:
        print(f"{sys.argv[0]}: {type(exc).__name__}: {exc}", file=sys.stderr)
    return 1


def _check_privilege() -> None:
    """A VMM is a user of its own and can never be more."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    if "0" in (*status["Uid"].split(), *status["Gid"].split()):
        raise UsageError("runs as root")
    if any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")):
        raise UsageError("has capabilities")
    if status["NoNewPrivs"] != "1":
        raise UsageError("could gain privileges")


def _check_descriptors(arguments: Arguments) -> None:
    """It has what its command line names, each fit for its purpose, and nothing else (but the state to come)."""
    drives = arguments.drives()
    for fd, read_only in drives:
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if access != (os.O_RDONLY if read_only else os.O_RDWR):
            raise UsageError(f"drive {fd} is open in mode {access}")
    if sum(read_only for _, read_only in drives) != 1 or len(drives) != 2:
        raise UsageError("a machine has a root, read-only, and a disk")
    named = {descriptor(arguments.texts[option]) for option in ("-kernel", "-initrd")}
    named |= {descriptor(arguments.one("-object")["mem-path"]), *(fd for fd, _ in drives)}
    named |= {int(keys["fd"]) for keys in arguments.found["-chardev"]}
    if tap := arguments.one("-netdev"):
        named.add(int(tap["fd"]))
        _check_tap(int(tap["fd"]))
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    found = {fd for fd in found if _is_open(fd)} - {0, 1, 2}
    if extra := found - named:
        if not arguments.incoming or len(extra) > 1:
            raise UsageError(f"has descriptors that it was not told of: {sorted(extra)}")


def _check_tap(fd: int) -> None:
    """In this network namespace, with a vnet header."""
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    socket.if_nametoindex(answer[:16].rstrip(b"\0").decode())
    if not int.from_bytes(answer[16:18], "little") & IFF_VNET_HDR:
        raise UsageError("the tap has no vnet header")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _socket_of(arguments: Arguments, name: str) -> socket.socket:
    fd = arguments.chardev(name)
    if fd is None:
        raise UsageError(f"no chardev {name}")
    return socket.socket(fileno=fd)


def _flood(fd: int, mib: int) -> None:
    piece = b"".join(b"line %06d of a flood\n" % number for number in range(MIB // 24))
    written = 0
    while written < mib * MIB:
        try:
            written += os.write(fd, piece)
        except OSError:
            return  # nobody listens any more
