"""The guest: the other end of the link, as `vsock_guest` is one, with commands that are only played.

`hostname` prints the name that the guest was given, `facts` all it knows as JSON, `wait` runs until it is cancelled;
everything else exits with 0 at once. What belongs to other messages than these is refused.
"""

from __future__ import annotations

import json
import os

from tests.support.fake_qemu.machine import Machine
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.connection import Connection, Unknown
from vm0.vsock_proto.errors import REASON_NUMBERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

PIECE = 64 * 1024


class Guest:
    """Runs on a machine; `ended` is called when it powers the machine off."""

    def __init__(
        self, machine: Machine, link: socket.socket, faults: dict[str, Any], ended: Callable[[], None]
    ) -> None:
        self._machine, self._link, self._faults, self._ended = machine, link, faults, ended
        self._connection = Connection("guest")
        self._waiting: set[int] = set()

    def boot(self, build: str) -> None:
        """Come up and say ready."""
        token = self._machine.arguments.kernel_parameters["vm0.token"]
        self._machine.guest |= {"token": token, "hostname": "", "machine_id": "", "quiesced": False, "shut": False}
        self._machine.keep()
        if noise := self._faults.get("link_noise"):
            self._link.sendall(b"\xff" * noise)
        self._send(m.Ready(m.VERSION, os.urandom(16), bytes.fromhex(token), build), 0)

    def read(self) -> bool:
        """Take what has arrived; False when the host has closed the link."""
        try:
            data = self._link.recv(PIECE)
        except ConnectionError:
            data = b""
        if not data:
            if self._machine.guest.get("shut"):
                self._ended()
            return False
        for seq, message in self._connection.receive_data(data):
            self._answer(seq, message)
        return True

    def _answer(self, seq: int, message: Message | Unknown) -> None:
        name = type(message).__name__
        if self._faults.get("guest_exits_on") == name:
            self._ended()
        if name in self._faults.get("guest_errors", ()):
            return self._refuse(seq, "internal", f"{name} fails, as the test wants")
        match message:
            case m.Ping():
                self._send(m.Pong(), seq)
            case m.Restore():
                self._know(token=message.token.hex(), hostname=message.hostname, machine_id=message.machine_id)
                self._send(m.Done(), seq)
            case m.Quiesce():
                self._know(quiesced=True)
                self._send(m.Quiesced(len(self._waiting)), seq)
            case m.Resume():
                self._know(quiesced=False)
                self._send(m.Done(), seq)
            case m.Shutdown():
                self._know(shut=True)
                self._send(m.Done(), seq)
            case m.Exec():
                self._run(seq, message)
            case m.Cancel() if seq in self._waiting:
                self._waiting.remove(seq)
                self._result(seq, m.CANCELLED)
            case m.Credit() | m.Cancel():
                pass
            case _:
                self._refuse(seq, "unknown_type", f"the fake guest does not play {name}")
        return None

    def _know(self, **facts: object) -> None:
        """Empty ones leave the thing as it is, as in a *restore*."""
        self._machine.guest |= {name: value for name, value in facts.items() if value != ""}
        self._machine.keep()

    def _run(self, seq: int, request: m.Exec) -> None:
        if self._machine.guest["quiesced"]:
            return self._refuse(seq, "quiesced", "no new work now")
        self._send(m.Started(1000 + seq), seq)
        command = request.argv[0]
        if command == "wait":
            self._waiting.add(seq)
            return None
        said = {"hostname": self._machine.guest["hostname"], "facts": json.dumps(self._machine.guest)}.get(command, "")
        if said:
            self._send(m.Output(m.STDOUT, said.encode()), seq)
        return self._result(seq, m.EXITED, len(said))

    def _result(self, seq: int, ended: int, said: int = 0) -> None:
        code = 0 if ended == m.EXITED else -1
        self._send(m.Result(ended, code, 0, 1, 0, 0, 0, said, 0, 0, ""), seq)

    def _refuse(self, seq: int, reason: str, text: str) -> None:
        self._send(m.Error(REASON_NUMBERS[reason], text), seq)

    def _send(self, message: Message, seq: int) -> None:
        if self._faults.get("deaf"):
            return
        try:
            self._link.sendall(b"".join(self._connection.frame(message, seq)))
        except ConnectionError:
            pass  # the host is gone; the next read sees it
