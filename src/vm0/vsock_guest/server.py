"""The guest's side of the protocol: each message to its operation, each operation's end back to the host."""

from __future__ import annotations

import os
import signal

from vm0.vsock_guest import power
from vm0.vsock_guest.command import Command
from vm0.vsock_guest.containment import Containment, Home, descendants
from vm0.vsock_guest.files import (
    ListTransfer,
    ReadTransfer,
    RequestError,
    StatTransfer,
    Transfer,
    WriteTransfer,
    reason_of,
)
from vm0.vsock_guest.identity import identity_of
from vm0.vsock_guest.link import Link
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.connection import Unknown
from vm0.vsock_proto.errors import REASON_NUMBERS, RemoteProtocolError, wire_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vm0.vsock_guest.identity import Identity
    from vm0.vsock_guest.loop import Loop, Timer
    from vm0.vsock_proto.codec import Message

MAX_COMMANDS = 1024
MAX_TRANSFERS = 32  # one thread each
SWEEP_S = 1.0  # how often the cgroups of ended commands that left something running are looked at
SHUTDOWN_S = 5.0  # for what runs to be gone after SIGKILL


class Settings:
    """What the guest is told at its start, and what a restore may change."""

    def __init__(
        self,
        *,
        token: bytes,
        build: str,
        token_fd: int = -1,
        cgroup_root: str = "",
        user: str = "",
        environment: Mapping[str, str] | None = None,
        whole_machine: bool = False,
        max_commands: int = MAX_COMMANDS,
    ) -> None:
        self.boot_id = os.urandom(16)
        self.token = token
        self._token_fd = token_fd  # where whoever starts us again after a crash finds it
        self.build = build
        self.cgroup_root = cgroup_root
        self.user = user  # of commands that name none; "" is our own
        self.environment = environment or {}  # of every command, unless it says otherwise
        self.max_commands = max_commands
        self.whole_machine = whole_machine  # this guest is a VM: it may set clock, entropy, names

    def become_another(self, token: bytes) -> None:
        """After a restore: whoever saw the guest before its snapshot must not take it for the same."""
        self.boot_id = os.urandom(16)
        if token:
            self.token = token
            if self._token_fd >= 0:
                os.pwrite(self._token_fd, token, 0)
                os.ftruncate(self._token_fd, len(token))


class Server:
    """Serves one connection at a time. `attach` a connected descriptor; `on_closed(why)` tells when it is closed, and
    `on_detached(why, served)` when nothing of it runs any more; `served`: whether the host ever asked for something."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        on_detached: Callable[[str, bool], None],
        on_closed: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._loop, self._settings = loop, settings
        self._on_detached, self._tell_closed = on_detached, on_closed
        self._link: Link | None = None
        self._commands: dict[int, Command] = {}
        self._strays: list[Command] = []  # of connections that are over: killed, and yet not gone
        self._transfers: dict[int, Transfer] = {}
        self._lingering: list[Containment] = []  # ended commands of which something still runs
        self._sweeper: Timer | None = None
        self._quiesced = False
        self._served = False
        self._names = 0
        self._home = Home(settings.cgroup_root)
        self._closing_seq: int | None = None
        self._detaching = False
        self.shut_down = False

    def attach(self, fd: int) -> None:
        self._served = self._quiesced = False
        settings = self._settings
        self._link = Link(self._loop, fd, self._on_message, self._on_closed)
        self._link.send(m.Ready(m.VERSION, settings.boot_id, settings.token, settings.build), 0)

    def close(self, why: str) -> bool:
        """Drop the link for good; False when there is none, so that no `on_detached` will follow."""
        self.shut_down = True
        if self._link is not None:
            self._link.close(why)
            return True
        return self._detaching

    def reap_adopted(self) -> None:
        """Collect ended children that are no command's: orphans that came to us because we are their subreaper."""
        leaders = {command.pid for command in (*self._commands.values(), *self._strays)}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid in leaders:  # its pidfd tells its command; look again after that
                self._loop.later(SWEEP_S, self.reap_adopted)
                return
            os.waitpid(ended.si_pid, 0)

    def _on_message(self, seq: int, message: Message | Unknown) -> None:
        self._served = True
        try:
            if isinstance(message, Unknown):
                self._refuse(seq, "unknown_type", f"type 0x{message.type:02X} is not known here")
            else:
                self._dispatch(seq, message)
        except RemoteProtocolError:
            raise
        except (OSError, KeyError, ValueError, RequestError) as exc:
            self._refuse(seq, reason_of(exc), str(exc))

    def _dispatch(self, seq: int, message: Message) -> None:
        match message:
            case m.Stdin():
                if seq in self._commands:
                    self._commands[seq].feed(message)
            case m.Data():
                transfer = self._transfers.get(seq)
                if isinstance(transfer, WriteTransfer):
                    transfer.feed(message)
            case m.Credit(stream=stream, amount=amount):
                if seq in self._commands:
                    self._commands[seq].credit(stream, amount)
                elif seq in self._transfers:
                    self._transfers[seq].credit(amount)
            case m.Signal(number=number):
                if seq in self._commands:
                    self._commands[seq].signal(number)
            case m.Resize(rows=rows, columns=columns):
                if seq in self._commands:
                    self._commands[seq].resize(rows, columns)
            case m.Cancel():
                if seq in self._commands:
                    self._commands[seq].cancel()
                elif seq in self._transfers:
                    self._transfers[seq].cancel()
            case _:
                self._begin(seq, message)

    def _begin(self, seq: int, message: Message) -> None:
        """A message that opens an operation."""
        if seq in self._commands or seq in self._transfers:
            raise RemoteProtocolError(f"seq {seq} is in use")
        match message:
            case m.Ping():
                self._send(m.Pong(), seq)
            case m.Quiesce():
                self._quiesced = True
                self._send(m.Quiesced(len(self._commands) + len(self._transfers)), seq)
            case m.Resume():
                self._quiesced = False
                self._send(m.Done(), seq)
            case m.Restore():
                self._restore(seq, message)
            case m.Shutdown():
                self._shut_down(seq)
            case _ if self._quiesced:
                self._refuse(seq, "quiesced", "the guest is quiesced: resume it first")
            case m.Exec():
                if len(self._commands) >= self._settings.max_commands:
                    self._refuse(seq, "busy", f"{len(self._commands)} commands run")
                else:
                    self._exec(seq, message)
            case _ if len(self._transfers) >= MAX_TRANSFERS:
                self._refuse(seq, "busy", f"{len(self._transfers)} file transfers run")
            case _:
                self._transfer(seq, message)

    def _exec(self, seq: int, request: m.Exec) -> None:
        if not request.argv or (request.flags & m.SHELL and len(request.argv) != 1):
            raise RequestError("invalid", "argv is empty, or not one text with the shell flag")
        identity = self._identity(request.user)
        self._names += 1
        containment = Containment(self._settings.cgroup_root, f"exec-{self._names}", self._home)

        def send(reply: Message) -> None:
            if self._commands.get(seq) is command:  # not a stray, whose number means another command by now
                self._send(reply, seq)

        command = Command(self._loop, request, containment, send, lambda _: self._command_ended(seq, command))
        self._commands[seq] = command
        command.start(identity)

    def _command_ended(self, seq: int, command: Command) -> None:
        if self._commands.get(seq) is command:
            del self._commands[seq]
        else:
            self._strays.remove(command)
        if not command.containment.release():
            self._lingering.append(command.containment)
            self._sweep_later()
        self._continue_closing()

    def _transfer(self, seq: int, message: Message) -> None:
        def send(reply: Message) -> None:
            if self._transfers.get(seq) is transfer:
                self._send(reply, seq)

        def finished(ended: Transfer, error: Exception | None) -> None:
            if self._transfers.get(seq) is not ended:
                return  # of a connection that is over
            del self._transfers[seq]
            if error is not None:
                self._refuse(seq, reason_of(error), str(error))
            self._continue_closing()

        transfer: Transfer
        match message:
            case m.WriteFile():
                transfer = WriteTransfer(self._loop, message, self._identity(message.user), send, finished)
            case m.ReadFile():
                transfer = ReadTransfer(self._loop, message, send, finished)
            case m.Stat():
                transfer = StatTransfer(self._loop, message, send, finished)
            case m.List():
                transfer = ListTransfer(self._loop, message, send, finished)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} opens no operation")
        self._transfers[seq] = transfer
        transfer.start()

    def _restore(self, seq: int, request: m.Restore) -> None:
        if not self._settings.whole_machine:
            raise RequestError("permission", "this guest is not a machine of its own: it has no clock or names to set")
        power.restore(request, self._settings.become_another)
        self._send(m.Done(), seq)

    def _shut_down(self, seq: int) -> None:
        self.shut_down = self._quiesced = True
        self._closing_seq = seq
        self._end_everything()
        self._loop.later(SHUTDOWN_S, self._acknowledge_shutdown)  # something unkillable must not hold the answer
        self._continue_closing()

    def _continue_closing(self) -> None:
        if self._commands or self._transfers:
            return
        if self._closing_seq is not None:
            self._acknowledge_shutdown()
        elif self._detaching:
            self._detached()

    def _acknowledge_shutdown(self) -> None:
        if self._closing_seq is not None:
            seq, self._closing_seq = self._closing_seq, None
            self._send(m.Done(), seq)

    def _on_closed(self, why: str) -> None:
        self._why, self._link, self._closing_seq = why, None, None
        self._tell_closed(why)
        self._detaching = True
        self._give_up = self._loop.later(SHUTDOWN_S, self._detached)
        self._end_everything()
        self._continue_closing()

    def _detached(self) -> None:
        self._detaching = False
        self._give_up.cancel()
        self._strays += self._commands.values()
        self._commands.clear()
        self._transfers.clear()
        self._on_detached(self._why, self._served)

    def _end_everything(self) -> None:
        for command in (*self._commands.values(), *self._strays):
            command.kill()
        for transfer in self._transfers.values():
            transfer.cancel()
        for containment in self._lingering:
            containment.kill()
        if not self._settings.cgroup_root:
            _kill_orphans()
        self._sweep_later()

    def _sweep_later(self) -> None:
        if self._lingering and (self._sweeper is None or self._sweeper.call is None):
            self._sweeper = self._loop.later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        self._lingering = [containment for containment in self._lingering if not containment.release()]
        self._sweep_later()

    def _identity(self, user: str) -> Identity:
        return identity_of(user, self._settings.user, self._settings.environment)

    def _send(self, message: Message, seq: int) -> None:
        if self._link is not None:
            self._link.send(message, seq)

    def _refuse(self, seq: int, reason: str, text: str) -> None:
        self._send(m.Error(REASON_NUMBERS[reason], wire_text(text)), seq)


def _kill_orphans() -> None:
    """Without cgroups: end what descends from us; with us as subreaper that includes what lost its parent."""
    for pid in descendants(os.getpid()):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended by itself meanwhile
