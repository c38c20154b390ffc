"""QMP, as QEMU 7.2 speaks it: the words are its own, and a test compares the two."""

from __future__ import annotations

import json
import os
import socket
import time

from tests.support.fake_qemu.machine import Machine, MigrationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": ["oob"]}
}
CAPABILITIES = ("events", "x-ignore-shared")
PIECE = 64 * 1024

# command -> arguments: those it must have, then those it may have
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "qmp_capabilities": ((), ("enable",)),
    "query-status": ((), ()),
    "stop": ((), ()),
    "cont": ((), ()),
    "quit": ((), ()),
    "balloon": (("value",), ()),
    "getfd": (("fdname",), ()),
    "migrate-set-capabilities": (("capabilities",), ()),
    "migrate-set-parameters": ((), ("max-bandwidth",)),
    "migrate": (("uri",), ()),
    "migrate_cancel": ((), ()),
    "migrate-incoming": (("uri",), ()),
    "query-migrate": ((), ()),
}


class Refused(Exception):
    """a request that is answered with an error"""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


class Monitor:
    """`changed` is called when the machine begins to run or stops; `failed` when a state could not be loaded."""

    def __init__(
        self,
        machine: Machine,
        sock: socket.socket,
        faults: dict[str, Any],
        *,
        changed: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        self._machine, self._sock, self._faults = machine, sock, faults
        self._changed, self._failed = changed, failed
        self._buffer = ""
        self._negotiated = False
        self._silent = False
        self._descriptors: list[int] = []  # received, not yet named
        self._named: dict[str, int] = {}
        self._capabilities = dict.fromkeys(CAPABILITIES, False)
        self._migration: dict[str, object] = {}
        self._outgoing = -1  # where a migration under way goes
        self._outgoing_ends = 0.0

    def greet(self) -> None:
        if self._faults.get("greet", True):
            self._write(GREETING)
        else:
            self._silent = True

    def read(self) -> bool:
        """Carry out what has arrived; False when the other end is gone."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(PIECE, socket.CMSG_SPACE(16 * 4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors += [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
        self._buffer += data.decode()
        while self._buffer.strip() and not self._silent:
            text = self._buffer.lstrip()
            try:
                request, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break  # the rest is still to come
            self._buffer = text[end:]
            self._answer(request)
        return bool(data)

    def _answer(self, request: dict[str, Any]) -> None:
        command, identity = str(request.get("execute")), {"id": request["id"]} if "id" in request else {}
        if self._negotiated:
            for _ in range(self._faults.pop("event_flood", 0)):
                self._event("VSERPORT_CHANGE", {"open": True, "id": "x" * 512})
        if command in self._faults.get("hang", ()):
            self._silent = True
            return
        if command in self._faults.get("exit_on", {}):
            os._exit(self._faults["exit_on"][command])
        try:
            answer = self._carried_out(command, request.get("arguments", {}))
        except Refused as exc:
            self._write(identity | {"error": {"class": exc.kind, "desc": str(exc)}})
            return
        self._write({"return": answer} | identity)
        self._afterwards(command, request.get("arguments", {}))

    def _carried_out(self, command: str, arguments: dict[str, Any]) -> object:
        if not self._negotiated and command != "qmp_capabilities":
            raise Refused("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
        if self._negotiated and command == "qmp_capabilities":
            raise Refused("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
        if command not in COMMANDS:
            raise Refused(f"The command {command} has not been found", "CommandNotFound")
        needed, possible = COMMANDS[command]
        if missing := [name for name in needed if name not in arguments]:
            raise Refused(f"Parameter '{missing[0]}' is missing")
        if unknown := [name for name in arguments if name not in needed + possible]:
            raise Refused(f"Parameter '{unknown[0]}' is unexpected")
        if command in self._faults.get("refuse", {}):
            raise Refused(self._faults["refuse"][command])
        method = getattr(self, f"_do_{command.replace('-', '_')}")
        result = method(**{name.replace("-", "_"): value for name, value in arguments.items()})
        return {} if result is None else result

    def _do_qmp_capabilities(self, enable: object = ()) -> None:
        self._negotiated = True

    def _do_query_status(self) -> object:
        status = self._machine.status
        return {"status": status, "singlestep": False, "running": status == "running"}

    def _do_stop(self) -> None:
        if self._machine.status == "running":
            self._machine.status = "paused"
            self._changed()
            self._event("STOP")
        self._machine.starts_when_loaded = False

    def _do_cont(self) -> None:
        if self._machine.status == "inmigrate":
            self._machine.starts_when_loaded = True
        elif self._machine.status != "running":
            self._machine.status = "running"
            self._event("RESUME")
            self._changed()

    def _do_quit(self) -> None:
        self._event("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})

    def _do_balloon(self, value: int) -> None:
        if not self._machine.has_balloon:
            raise Refused("No balloon device has been activated", "DeviceNotActive")

    def _do_getfd(self, fdname: str) -> None:
        if not self._descriptors:
            raise Refused("No file descriptor supplied via SCM_RIGHTS")
        self._named[fdname] = self._descriptors.pop(0)

    def _do_migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> None:
        for wanted in capabilities:
            if wanted["capability"] not in CAPABILITIES:
                raise Refused(f"Parameter 'capability' does not accept value '{wanted['capability']}'")
        self._capabilities |= {wanted["capability"]: wanted["state"] for wanted in capabilities}

    def _do_migrate_set_parameters(self, max_bandwidth: int = 0) -> None:
        pass

    def _do_query_migrate(self) -> object:
        return self._migration

    def _do_migrate(self, uri: str) -> None:
        if self._machine.status == "inmigrate":
            raise Refused("Guest is waiting for an incoming migration")
        if uri.removeprefix("fd:") not in self._named:
            raise Refused(f"File descriptor named '{uri.removeprefix('fd:')}' has not been found")
        if self._machine.status == "running":
            raise Refused("this machine is played only while it stands still")
        if self._outgoing >= 0:
            raise Refused("There's a migration process in progress")
        self._migrating("setup")

    def _do_migrate_cancel(self) -> None:
        if self._outgoing >= 0:
            os.close(self._outgoing)
            self._outgoing = -1
            self._migrating("cancelled")

    def _do_migrate_incoming(self, uri: str) -> None:
        if self._machine.status != "inmigrate" or self._migration:
            raise Refused("'-incoming' was not specified on the command line")
        self._migrating("setup")
        if not uri.removeprefix("fd:").isdigit():
            self._migration = {}
            raise Refused(f"File descriptor named '{uri.removeprefix('fd:')}' has not been found")

    def _afterwards(self, command: str, arguments: dict[str, Any]) -> None:
        """What goes on when the answer is out."""
        match command:
            case "quit":
                os._exit(0)
            case "migrate":
                self._migrating("active")
                self._outgoing = self._named.pop(arguments["uri"].removeprefix("fd:"))
                self._outgoing_ends = time.monotonic() + self._faults.get("migration_ms", 0) / 1000
                self.migrate_on()
            case "migrate-incoming":
                self._migrating("active")
                self._load(int(arguments["uri"].removeprefix("fd:")))

    def migrate_on(self) -> float | None:
        """Finish a migration that is due; returns in how many seconds one is, None if none is under way. At its end the
        machine stands still, whether it did when it began or not."""
        if self._outgoing < 0:
            return None
        if (left := self._outgoing_ends - time.monotonic()) > 0:
            return left
        self._machine.status = "postmigrate"
        self._changed()
        self._write_state()
        self._migrating("completed")
        return None

    def _write_state(self) -> None:
        fd, self._outgoing = self._outgoing, -1
        with open(fd, "wb") as file:
            file.write(self._machine.saved(self._capabilities["x-ignore-shared"]))

    def _load(self, fd: int) -> None:
        try:
            with open(fd, "rb") as file:
                self._machine.load(file.read(), self._capabilities["x-ignore-shared"])
        except (MigrationError, OSError) as exc:
            self._migrating("failed")
            self._failed(str(exc))
            return
        self._migrating("completed")
        self._changed()

    def _migrating(self, status: str) -> None:
        self._migration = {"status": status}
        if self._capabilities["events"]:
            self._event("MIGRATION", {"status": status})

    def _event(self, name: str, data: dict[str, Any] | None = None) -> None:
        now = time.time_ns() // 1000
        stamp = {"seconds": now // 1_000_000, "microseconds": now % 1_000_000}
        self._write({"timestamp": stamp, "event": name} | ({"data": data} if data is not None else {}))

    def _write(self, message: dict[str, Any]) -> None:
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\r\n")
        except ConnectionError:
            pass  # whoever asked is gone; a machine runs on without its monitor
