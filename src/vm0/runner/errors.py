"""The root of the runner's own errors: a message that names the thing, and a hint with the next step."""

from __future__ import annotations


class RunnerError(Exception):
    """the runner failed"""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.hint = hint


class StateDirectoryInUse(RunnerError):
    """another runner owns the state directory; `holder_pid` is its process, 0 when it is not known"""

    def __init__(self, path: str, holder_pid: int) -> None:
        super().__init__(
            f"state directory {path} is in use by the runner with pid {holder_pid or 'unknown'}",
            hint="stop that runner, or start this one with another state_dir",
        )
        self.holder_pid = holder_pid
