"""Entry point of the `vm0` command."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from vm0.cli.errors import EXIT_USAGE, UsageError, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(words), words, _state_dir)


def _dispatch(words: Sequence[str]) -> int:
    import typer

    from vm0.cli.app import app

    try:
        result = app(list(words), prog_name="vm0", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # typer makes it exit code 1, which may be the agent's
            raise exc.__context__ from None
        raise
    except typer.TyperException as exc:
        if exc.exit_code != EXIT_USAGE:
            raise
        context = getattr(exc, "ctx", None)
        command = context.command_path if context is not None else "vm0"
        message = exc.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
        raise UsageError(message, hint=f"`{command} --help` lists the options") from None
    return result if isinstance(result, int) else 0


def _state_dir() -> pathlib.Path:
    from vm0.cli.config import Settings

    return Settings.from_environment().state_dir


if __name__ == "__main__":
    sys.exit(main())
