"""How a command ends: exit codes, the error every expected failure is shown as, and the report of an unexpected one.

0 done · 1 expected failure (125 for `vm0 run`, whose other codes are the agent's) · 2 wrong usage · 3 a bug of vm0,
with a report in a file · 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from vm0 import __version__

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_BUG = 3
EXIT_TIMED_OUT = 124  # as timeout(1)
EXIT_RUN_FAILURE = 125  # as docker run: it was us, not the command
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as if SIGPIPE had ended us
REPORT_COMMAND_LENGTH = 4096  # characters kept of the command line; a prompt may be a MiB

# Options whose values may be secret. What follows `=` goes; a bare name is kept, since it says what was meant.
SECRET_OPTIONS = ("--secret", "--env", "--token")


class CliError(Exception):
    """a command failed for a reason its user can do something about

    `hint` is the next step. `exit_code` 0 stands for the usual one of the command.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 0) -> None:
        super().__init__(message)
        self.hint, self.exit_code = hint, exit_code


class UsageError(CliError):
    """the command line says something that makes no sense"""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_USAGE)


class Interrupted(Exception):
    """the user asked to stop, and everything is stopped"""


def guarded(command: Callable[[], int | None], argv: Sequence[str], state_dir: Callable[[], pathlib.Path]) -> int:
    """The exit code of `command`; every way it can fail is told on stderr, nothing is raised."""
    failure_code = EXIT_RUN_FAILURE if _is_run(argv) else EXIT_FAILURE
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, Interrupted):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout has gone (`vm0 runs ls | head`); the interpreter must not fail again at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE
    except Exception as exc:
        if (expected := as_cli_error(exc)) is not None:
            tell(str(expected), expected.hint)
            return expected.exit_code or failure_code
        report = write_report(exc, argv, state_dir)
        tell(f"this is a bug in vm0: {type(exc).__name__}", f"the report is in {report}; please send it to us")
        return EXIT_BUG


def _is_run(argv: Sequence[str]) -> bool:
    return next((word for word in argv if not word.startswith("-")), "") == "run"


def as_cli_error(exc: BaseException) -> CliError | None:
    """The expected error that `exc` is or stands for. Other packages' errors are known by having a hint."""
    if isinstance(exc, CliError):
        return exc
    hint = getattr(exc, "hint", None)
    if isinstance(hint, str):
        return CliError(str(exc), hint=hint)
    if isinstance(exc, OSError) and exc.filename is not None:
        return CliError(f"{exc.filename}: {(exc.strerror or 'failed').lower()}", hint=_os_hint(exc))
    if isinstance(exc, OSError) and exc.errno == 28:
        return CliError("no space is left on the device", hint="free some space and try again")
    if isinstance(exc, ExceptionGroup):
        found = [as_cli_error(inner) for inner in exc.exceptions]
        if found and all(found):
            return found[0]
    return None


def _os_hint(exc: OSError) -> str:
    if isinstance(exc, PermissionError):
        return "check its owner and mode, or run vm0 as a user who may"
    if isinstance(exc, FileNotFoundError):
        return "check the path"
    return "free some space and try again" if exc.errno == 28 else "check the path and its file system"


def tell(message: str, hint: str = "") -> None:
    """Say an error on stderr; a stderr that is gone is no second error."""
    text = f"error: {message}\n" + (f"hint: {hint}\n" if hint else "")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text.encode(errors="backslashreplace").decode())
        sys.stderr.flush()


def without_secrets(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line with the values of secret options replaced, and those values."""
    shown: list[str] = []
    values: list[str] = []
    option = ""
    for word in argv:
        name, separator, value = word.partition("=")
        if option:  # this word is the value of the option before it
            shown.append(_hidden(option, word, values))
            option = ""
        elif word in SECRET_OPTIONS:
            shown.append(word)
            option = word
        elif name in SECRET_OPTIONS and separator:
            shown.append(f"{name}={_hidden(name, value, values)}")
        else:
            shown.append(word)
    return shown, [value for value in values if value]


def _hidden(option: str, text: str, values: list[str]) -> str:
    name, separator, value = text.partition("=")
    if option == "--token":
        values.append(text)
        return "***"
    values.append(value)
    return f"{name}=***" if separator else name


def write_report(exc: BaseException, argv: Sequence[str], state_dir: Callable[[], pathlib.Path]) -> str:
    """Write the report of a bug, a Markdown file to send to us, and return its path, or why there is none."""
    import platform
    import re
    import traceback

    shown, secrets = without_secrets(argv)
    command = " ".join(["vm0", *shown])
    if len(command) > REPORT_COMMAND_LENGTH:
        command = f"{command[:REPORT_COMMAND_LENGTH]} ... ({len(command)} characters)"
    trace = "".join(traceback.format_exception(exc))
    text = (
        f"# vm0 failed: {type(exc).__name__}\n\n"
        f"- vm0 {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"- {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n\n"
        f"Command:\n\n```text\n{command}\n```\n\nTraceback:\n\n```text\n{trace}```\n"
    )
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"vm0_(user|runner|sandbox)_[A-Za-z0-9._-]+", r"vm0_\1_***", text)
    return _written(text, state_dir)


def _written(text: str, state_dir: Callable[[], pathlib.Path]) -> str:
    import tempfile

    name = f"vm0-crash-{time.strftime('%Y%m%d-%H%M%S')}-"
    problem = ""
    for in_state_dir in (True, False):
        try:
            path = state_dir() / "crashes" if in_state_dir else pathlib.Path(tempfile.gettempdir())
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, file = tempfile.mkstemp(prefix=name, suffix=".md", dir=path)  # mode 0600
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            return file
        except Exception as exc:  # a report that cannot be written must not hide the bug
            problem = str(exc)
    sys.stderr.write(text)
    return f"the text above (no file could be written: {problem})"
