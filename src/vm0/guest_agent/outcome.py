"""How the run ended, as the runner reads it from outcome.json after guest-agent is gone.

`{"kind", "exitCode"?, "signal"?, "reason"?, "detail"?, "eventCount"}`: the contract's `Outcome` and the number of
events there were. What was not observed is `unknown`.
"""

from __future__ import annotations

import json
import os
import signal as signals

OUTCOME_NAME = "outcome.json"
MAX_DETAIL_BYTES = 16 * 1024
FAILURE = 1
NOT_EXECUTABLE = 126
NOT_FOUND = 127
TERMINATED = 143

EXITED, SIGNALLED, UNKNOWN = "exited", "signalled", "unknown"


class Outcome:
    """One ending. `exit_code` belongs to `exited`, `signal` to `signalled`."""

    __slots__ = ("detail", "exit_code", "kind", "reason", "signal")

    def __init__(
        self,
        kind: str,
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        reason: str = "",
        detail: str = "",
    ) -> None:
        self.kind, self.exit_code, self.signal = kind, exit_code, signal
        self.reason, self.detail = reason, detail

    @property
    def process_exit_code(self) -> int:
        """What guest-agent itself exits with."""
        if self.exit_code is not None:
            return self.exit_code
        return FAILURE if self.signal is None else 128 + self.signal

    @property
    def success(self) -> bool:
        return self.exit_code == 0

    def encoded(self, event_count: int) -> dict[str, object]:
        fields: dict[str, object] = {
            "kind": self.kind,
            "exitCode": self.exit_code,
            "signal": self.signal,
            "reason": self.reason or None,
            "detail": last_bytes(self.detail, MAX_DETAIL_BYTES) or None,
            "eventCount": event_count,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def text(self) -> str:
        if self.signal is not None:
            what = f"agent killed by {signal_name(self.signal)}"
        elif self.kind == UNKNOWN:
            what = "no end of the agent was observed"
        else:
            what = f"exit code {self.exit_code}"
        return what + (f", {self.reason}" if self.reason else "") + (f": {self.detail}" if self.detail else "")


def failure(reason: str, detail: str, exit_code: int = FAILURE) -> Outcome:
    return Outcome(EXITED, exit_code=exit_code, reason=reason, detail=detail)


def signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_bytes(text: str, limit: int) -> str:
    """The end of `text`, at most `limit` bytes of UTF-8: the end of an error says more than its start."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else "…" + data[-(limit - 3) :].decode("utf-8", "ignore")


def write(path: str, outcome: Outcome, event_count: int) -> None:
    """Complete or not there at all. Raises OSError."""
    partial = f"{path}.partial"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        json.dump(outcome.encoded(event_count), file)
    os.replace(partial, path)
