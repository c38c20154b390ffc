"""How preparation talks: one step after another, each with its time; a moving bar on a terminal, else a line."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from vm0.cli.event_lines import clean

if TYPE_CHECKING:
    from rich.progress import Progress


class Steps(Protocol):
    """`step` begins the next one, which ends the one before; `close` ends the last and may be called more than once."""

    def note(self, text: str) -> None: ...
    def step(self, text: str) -> None: ...
    def fraction(self, done: float) -> None:
        """How much of the step is done, 0 to 1."""
        ...

    def pause(self) -> None:
        """Leave the terminal alone, for a question; the next step goes on."""
        ...

    def close(self) -> None: ...


class LineSteps:
    """One line on stderr as each step begins, with the seconds since the beginning of all."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        print(f"vm0: {text}", file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        self.note(f"{time.monotonic() - self._started:5.1f} s  {text}")

    def fraction(self, done: float) -> None:
        pass

    def pause(self) -> None:
        pass

    def close(self) -> None:
        pass


class TerminalSteps:
    """The running step is a bar that moves; the finished ones stay above it with what they took."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._text, self._since = "", 0.0

    def note(self, text: str) -> None:
        self._line(f"vm0: {text}", "yellow")

    def step(self, text: str) -> None:
        self._finish("✓", "green")
        self._text, self._since = clean(text), time.monotonic()
        self._show(None)

    def fraction(self, done: float) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=1.0, completed=done)

    def pause(self) -> None:
        self._finish("✓", "green")

    def close(self) -> None:
        """A step that goes on when an error comes by is the one that failed."""
        failed = sys.exc_info()[0] is not None
        self._finish("✗" if failed else "✓", "red" if failed else "green")

    def _show(self, total: float | None) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.add_task(self._text, total=total)
        self._bar.start()

    def _finish(self, mark: str, style: str) -> None:
        if self._bar is None:
            return
        self._bar.stop()
        self._bar = None
        self._line(f"{mark} {self._text}  {time.monotonic() - self._since:.1f} s", style)

    def _line(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))


def steps_for(*, plain: bool) -> Steps:
    """What fits where stderr goes."""
    return LineSteps() if plain or not sys.stderr.isatty() else TerminalSteps()
