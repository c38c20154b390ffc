"""How a command talks while it works: to a terminal, to a plain stderr, or as NDJSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TextIO

from vm0.cli.event_lines import Line, LineKind, clean, lines_of, stdout_text
from vm0.cli.run_summary import step_words, summary_lines
from vm0.contracts.codec import encode
from vm0.contracts.runs import RunView, TimelineStep

MARKS = {
    LineKind.SESSION: "*", LineKind.SAID: "", LineKind.TOOL: "$", LineKind.OUTPUT: "  |",
    LineKind.FAILED: "  !", LineKind.RESULT: "*", LineKind.OTHER: "-",
}  # fmt: skip


class Progress(Protocol):
    """Told of everything that happens, in order; `data` is for stdout. `close` may be called more than once."""

    def note(self, text: str) -> None: ...
    def step(self, text: str) -> None:
        """A step of something that takes long: worth a line where nothing moves."""
        ...

    def doing(self, what: str) -> None: ...
    def phase(self, step: TimelineStep) -> None: ...
    def event(self, event: Mapping[str, Any]) -> None: ...
    def ended(self, run: RunView) -> None: ...
    def data(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainProgress:
    """One line each on stderr."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def note(self, text: str) -> None:
        self._write(f"vm0: {text}")

    def step(self, text: str) -> None:
        self.note(text)

    def doing(self, what: str) -> None:
        pass

    def phase(self, step: TimelineStep) -> None:
        self._write(f"{'·' if step.ok else '!'} {step_words(step)}")

    def event(self, event: Mapping[str, Any]) -> None:
        if (text := stdout_text(event)) is not None:
            self.data(text)
            return
        for line in lines_of(event):
            self._write(marked(line))

    def ended(self, run: RunView) -> None:
        for line in summary_lines(run):
            self._write(f"vm0: {line}")

    def data(self, text: str) -> None:
        write_data(text)

    def close(self) -> None:
        pass

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "ascii"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self._stream.flush()


class JsonProgress(PlainProgress):
    """NDJSON on stdout for programs; notes stay on stderr."""

    def phase(self, step: TimelineStep) -> None:
        self._print({"type": "phase", **encode(step)})

    def event(self, event: Mapping[str, Any]) -> None:
        self._print({"type": "event", "event": dict(event)})

    def ended(self, run: RunView) -> None:
        pass  # printed as the very last line, by `print_run`, when --output is written as well

    def data(self, text: str) -> None:
        pass  # it is in the events

    @staticmethod
    def print_run(run: RunView) -> None:
        JsonProgress._print({"type": "run", **encode(run)})

    @staticmethod
    def _print(value: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
        sys.stdout.flush()


class TerminalProgress:
    """Lines with colours, and one moving line that says what is being done."""

    STYLES: ClassVar[dict[LineKind, str]] = {
        LineKind.SESSION: "dim", LineKind.SAID: "bold", LineKind.TOOL: "cyan", LineKind.OUTPUT: "dim",
        LineKind.FAILED: "red", LineKind.RESULT: "green", LineKind.OTHER: "dim",
    }  # fmt: skip

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("starting", spinner="dots")
        self._status.start()

    def note(self, text: str) -> None:
        self._line(f"vm0: {text}", "yellow")

    def step(self, text: str) -> None:
        self.doing(text)

    def doing(self, what: str) -> None:
        from rich.text import Text

        self._status.update(Text(clean(what)))

    def phase(self, step: TimelineStep) -> None:
        self._line(f"{'✓' if step.ok else '✗'} {step_words(step)}", "green" if step.ok else "red")

    def event(self, event: Mapping[str, Any]) -> None:
        self.doing("the agent works")
        if (text := stdout_text(event)) is not None:
            self.data(text)
            return
        for line in lines_of(event):
            self._line(marked(line), self.STYLES[line.kind])

    def data(self, text: str) -> None:
        if sys.stdout.isatty():
            self._line(clean(text).removesuffix("\n"), "")  # the same terminal, and above the moving line
        else:
            write_data(text)

    def ended(self, run: RunView) -> None:
        self.close()
        for line in summary_lines(run):
            self._line(f"vm0: {line}", "")

    def close(self) -> None:
        self._status.stop()

    def _line(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))


def marked(line: Line) -> str:
    return (
        f"{MARKS[line.kind]} {line.text}".strip() if line.kind is LineKind.SAID else f"{MARKS[line.kind]} {line.text}"
    )


def write_data(text: str) -> None:
    """Text for stdout: as it is for a program, harmless for a terminal. It always ends with a line break."""
    text = clean(text) if sys.stdout.isatty() else text
    sys.stdout.buffer.write(text.encode(errors="replace") + (b"" if text.endswith("\n") else b"\n"))
    sys.stdout.flush()


def progress_for(*, as_json: bool, plain: bool) -> Progress:
    """What fits where stderr goes."""
    if as_json:
        return JsonProgress()
    return PlainProgress() if plain or not sys.stderr.isatty() else TerminalProgress()
