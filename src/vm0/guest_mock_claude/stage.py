"""Where the mock performs: stdout and the session's history, one JSON line per event, never buffered."""

from __future__ import annotations

import json
import os

from vm0.guest_mock_claude import events
from vm0.guest_mock_claude.session import Session, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vm0.guest_mock_claude.events import Event

STDOUT_FD, STDERR_FD = 1, 2


class Stage:
    """Events go out in the order they are made; each is on the pipe when the call returns."""

    def __init__(self, session: Session, cwd: str, variables: Mapping[str, str], result_only: bool = False) -> None:
        self._session, self._cwd, self._result_only = session, cwd, result_only
        self.variables = variables

    def init(self) -> None:
        self.emit(events.init(self._session.id, self._cwd))

    def text(self, words: str) -> None:
        self.emit(events.text(self._session.id, words))

    def tool_use(self, name: str, arguments: dict[str, str]) -> None:
        self.emit(events.tool_use(self._session.id, name, arguments))

    def tool_result(self, output: str, is_error: bool) -> None:
        self.emit(events.tool_result(self._session.id, output, is_error))

    def result(self, words: str, is_error: bool = False) -> None:
        self.emit(events.result(self._session.id, words, is_error))

    def emit(self, event: Event) -> None:
        self.replay(event_line(event), show=not self._result_only or event["type"] == "result")

    def replay(self, line: bytes, show: bool = True) -> None:
        """One line, as it is, into the history and to stdout."""
        self._session.record(line)
        if show:
            write_all(STDOUT_FD, line)

    def raw(self, data: bytes) -> None:
        """Bytes to stdout that are no part of the history."""
        write_all(STDOUT_FD, data)

    def stderr(self, data: bytes) -> None:
        write_all(STDERR_FD, data)

    def close_stdout(self) -> None:
        os.close(STDOUT_FD)

    def flood_line(self, text: str) -> bytes:
        return event_line(events.text(self._session.id, text))


def event_line(event: Event) -> bytes:
    """Compact JSON in valid UTF-8, whatever bytes the prompt or the command's output had."""
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode() + b"\n"
