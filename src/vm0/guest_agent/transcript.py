"""What the CLI prints, turned into events; runs in the threads that read its pipes and never touches the network.

`claude-code` and `mock-claude` print one JSON object per line, which is an event as it stands; other lines are kept in
agent.log only. Every line of a `command` is an event of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque

from vm0.guest_agent import cli, inbox, session
from vm0.guest_agent.lines import MAX_LINE_BYTES, BoundedFile, Line, LineSplitter
from vm0.guest_agent.watchdog import ToolTracker
from vm0.guest_common.masking import StreamMasker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_agent.events import EventQueue
    from vm0.guest_common.log import Log
    from vm0.guest_common.masking import Masker
    from vm0.guest_common.operations import Operations

MAX_EVENT_DEPTH = 60  # the contract takes 64, and the event stands inside the request
MAX_EVENT_BYTES = 1536 * 1024  # of its JSON: control and invalid bytes take more than one
STDERR_TAIL_LINES = 50
STDERR_LOGGED_BYTES = 256 * 1024
MAX_ODDITIES_LOGGED = 10

# Words of the protocols: never masked as a key or a type, even if somebody's secret is `assistant`.
VOCABULARY = frozenset(
    "type subtype message content session_id sequenceNumber role model id name input text thinking tool_use_id "
    "parent_tool_use_id uuid usage result is_error exit_code stream cut_bytes duration_ms num_turns total_cost_usd "
    "system init assistant user result success error output stdout stderr tool_use tool_result stream_event "
    "error_during_execution error_max_turns line_too_long".split()
)


def parse_event(data: bytes) -> dict[str, object] | None:
    """The JSON object of a line if it can be an event: it has a text `type` and fits the contract."""
    text = data.decode("utf-8", "replace").strip()
    if not text.startswith("{"):
        return None
    try:
        event = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return None
    if text.count("{") + text.count("[") > MAX_EVENT_DEPTH and depth(event) > MAX_EVENT_DEPTH:
        return None
    event.pop("sequenceNumber", None)  # ours
    return event


def depth(value: object) -> int:
    """How deep objects and lists are nested; bounded by the recursion limit that parsing obeyed."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def fits(event_json: str) -> bool:
    """Whether it is small enough to be sent; looks closer only if it could be too large."""
    return len(event_json) * 4 <= MAX_EVENT_BYTES or len(event_json.encode("utf-8", "replace")) <= MAX_EVENT_BYTES


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class Transcript:
    """Reads both pipes of one CLI. The results are read by the main thread when the pipes are at their end."""

    def __init__(
        self,
        kind: str,
        masker: Masker,
        queue: EventQueue,
        messages: inbox.Inbox,
        log: Log,
        operations: Operations,
        agent_log_path: str,
        api_start_time_ms: int | None = None,
    ) -> None:
        self._command = kind == cli.COMMAND
        self._masker = masker
        self._queue = queue
        self._messages = messages
        self._log = log
        self._operations = operations
        self._agent_log = BoundedFile(agent_log_path)
        self._api_start_time_ms = api_start_time_ms
        self._splitters = {"stdout": LineSplitter(), "stderr": LineSplitter()}
        self._tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
        self._stderr_left = STDERR_LOGGED_BYTES
        self._oddities = 0
        self._first_event = threading.Lock()
        self.tools = ToolTracker()
        self.session_id = ""
        self.result_text: str | None = None
        self.result_is_error: bool | None = None
        self.last_event_at: float | None = None

    def feed(self, stream: str, chunk: bytes) -> None:
        if stream == "stdout":
            self._agent_log.write(chunk)
        splitter = self._splitters[stream]
        if not self._command and stream == "stdout" and b"{" not in chunk:  # no event starts here
            lines = splitter.feed_edges(chunk)
        elif self._command and self._queue.overflowed:
            skipped, lines = splitter.feed_tail(chunk, STDERR_TAIL_LINES if stream == "stderr" else 0)
            self._queue.drop(skipped)
        else:
            lines = splitter.feed(chunk)
        self._lines(stream, lines)

    def finish(self, stream: str) -> None:
        self._lines(stream, self._splitters[stream].finish())
        if stream == "stdout":
            self._agent_log.close()

    def finish_command(self, exit_code: int) -> None:
        """The last event of a `command`, so that its stream ends like that of the other kinds."""
        if self._command:
            subtype = "error" if exit_code else "success"
            self._put({"type": "result", "subtype": subtype, "is_error": exit_code != 0, "exit_code": exit_code})

    def stderr_tail(self) -> str:
        return "\n".join(self._tail)

    def _lines(self, stream: str, lines: list[Line]) -> None:
        for line in lines:
            if stream == "stderr":
                self._stderr_line(line)
            if self._command:
                self._output_line(stream, line)
            elif stream == "stdout":
                self._event_line(line)

    def _output_line(self, stream: str, line: Line) -> None:
        if self._queue.overflowed:
            self._queue.drop(1)
            return
        event: dict[str, object] = {"type": "output", "stream": stream, "text": self._text(line)}
        if line.cut:
            event["cut_bytes"] = line.cut
        self._put(event)

    def _text(self, line: Line) -> str:
        """The line as masked text. At a cut, a secret that is only half there goes as well."""
        text = line.data.decode("utf-8", "replace").removesuffix("\r")
        return StreamMasker(self._masker).feed(text) if line.cut else self._masker.mask_text(text)

    def _event_line(self, line: Line) -> None:
        if line.cut:
            size = len(line.data) + line.cut
            self._odd(f"a line of {size} bytes is beyond the limit of {MAX_LINE_BYTES}; it is no event")
            self._put({"type": "system", "subtype": "line_too_long", "cut_bytes": size})
            return
        event = parse_event(line.data)
        if event is None:
            if line.data.lstrip().startswith(b"{"):
                self._odd("a line that looks like JSON is no event; see agent.log")
            return
        now = time.monotonic()
        if self.tools.observe(event, now):
            self._messages.post(inbox.TOOLS)
        self.session_id = self.session_id or session.session_id_of(event) or ""
        is_result = event["type"] == "result"
        if is_result:
            self._result(event)
        self._put(event)
        self.last_event_at = now
        if is_result:
            self._messages.post(inbox.RESULT)

    def _result(self, event: dict[str, object]) -> None:
        text = event.get("result")
        self.result_text = text if isinstance(text, str) else self.result_text
        self.result_is_error = bool(event.get("is_error")) or event.get("subtype") != "success"

    def _put(self, event: dict[str, object]) -> None:
        if self._first_event.acquire(blocking=False) and self._api_start_time_ms is not None:
            self._operations.record("api_to_cli_init", time.time() * 1000 - self._api_start_time_ms, True)
        try:
            if self._queue.overflowed:  # a flood passes at full speed: its events are counted, not made
                self._queue.drop(1)
            else:
                masked = self._masker.dumps(event)
                self._queue.put(masked if fits(masked) else self._masker.dumps(self._shortened(event)))
        except (ValueError, RecursionError):  # a number beyond what JSON can say
            self._odd("an event cannot be written as JSON again; it is left out")

    def _shortened(self, event: dict[str, object]) -> dict[str, object]:
        """Something of an event that is too large as JSON: less of an output line, otherwise only a marker."""
        text = event.get("text")
        if not self._command or not isinstance(text, str):
            self._odd(f"an event is beyond the limit of {MAX_EVENT_BYTES} bytes as JSON and is left out")
            return {"type": "system", "subtype": "line_too_long"}
        kept = text[: MAX_EVENT_BYTES // 8]  # JSON takes at most six bytes for one character
        cut = event.get("cut_bytes")
        cut_bytes = len(text[len(kept) :].encode("utf-8", "replace")) + (cut if isinstance(cut, int) else 0)
        return {**event, "text": kept, "cut_bytes": cut_bytes}

    def _stderr_line(self, line: Line) -> None:
        text = self._text(line)
        if not text.strip():
            return
        self._tail.append(text[:2000])
        if self._stderr_left > 0:
            self._stderr_left -= len(line.data)
            more = "" if self._stderr_left > 0 else " (no more of its standard error is logged)"
            self._log.info(f"agent: {text}{more}")

    def _odd(self, message: str) -> None:
        self._oddities += 1
        if self._oddities <= MAX_ODDITIES_LOGGED:
            self._log.warn(message)
