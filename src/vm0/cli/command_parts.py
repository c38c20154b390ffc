"""What the declarations of commands share: groups, the words of choices, options that several commands have."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer


def command_group(text: str) -> typer.Typer:
    """A group of commands that shows its help when it is given none."""
    found = typer.Typer(
        help=text,
        add_completion=False,
        rich_markup_mode=None,  # else --help imports rich
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    found.callback(invoke_without_command=True)(needs_command)
    return found


def needs_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


# The words of the contracts, said again so that --help need not import them; a test compares the two.
Agent = Literal["claude-code", "mock-claude", "command"]
Backend = Literal["auto", "process", "qemu", "firecracker"]
Tier = Literal["process", "emulated-vm", "hardware-vm"]
Architecture = Literal["x86_64", "aarch64"]
Status = Literal["pending", "running", "completed", "failed", "cancelled"]
TokenKind = Literal["user", "runner"]

ServerOption = Annotated[
    str,
    typer.Option("--server", metavar="URL", help="Server to use instead of this machine. [$VM0_SERVER_URL]"),
]
TokenFileOption = Annotated[
    pathlib.Path | None, typer.Option("--token-file", metavar="FILE", help="File with the token. [else $VM0_TOKEN]")
]
RunnerTokenFileOption = Annotated[
    pathlib.Path | None,
    typer.Option("--token-file", metavar="FILE", help="File with the token. [else $VM0_RUNNER_TOKEN]"),
]
StateDirOption = Annotated[
    pathlib.Path | None, typer.Option("--state-dir", metavar="DIR", help="State directory. [$VM0_HOME]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, or its unique beginning.")]
BackendOption = Annotated[Backend, typer.Option(help="What the sandbox is made with; `process` isolates nothing.")]
ImageOption = Annotated[
    str,
    typer.Option(
        metavar="RECIPE",
        help="What virtual machines start from. [for claude-code its own, else base]",
        show_default=False,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Install missing Debian packages without asking.")]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Fetch nothing to make the sandbox: its image must be here.")
]
