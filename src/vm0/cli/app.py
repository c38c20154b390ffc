"""The commands and their options. What a command needs is imported when it is called, so that `vm0 --help` is fast."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer

from vm0 import __version__


def _typer(text: str) -> typer.Typer:
    return typer.Typer(
        help=text,
        add_completion=False,
        rich_markup_mode=None,  # else --help imports rich
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _typer("Run AI coding agents, each run in a sandbox of its own.")
runner_app = _typer("Execute the runs of a server on this host.")
token_app = _typer("Make access tokens.")
runs_app = _typer("Show and cancel runs.")
image_app = _typer("Build and show the images that virtual machines start from.")
app.add_typer(runner_app, name="runner")
app.add_typer(token_app, name="token")
app.add_typer(runs_app, name="runs")
app.add_typer(image_app, name="image")

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


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"vm0 {__version__}")
        raise typer.Exit
    _needs_command(context)


@runner_app.callback(invoke_without_command=True)
def runner_root(context: typer.Context) -> None:
    _needs_command(context)


@token_app.callback(invoke_without_command=True)
def token_root(context: typer.Context) -> None:
    _needs_command(context)


@runs_app.callback(invoke_without_command=True)
def runs_root(context: typer.Context) -> None:
    _needs_command(context)


@image_app.callback(invoke_without_command=True)
def image_root(context: typer.Context) -> None:
    _needs_command(context)


def _needs_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command("run")
def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the agent shall do; `-` reads it from stdin.")],
    agent: Annotated[Agent, typer.Option(help="Program that does the work.")] = "claude-code",
    artifact: Annotated[
        str, typer.Option(metavar="DIR[:MOUNT]", help="Folder to work on; a copy of it, at MOUNT in the sandbox.")
    ] = "",
    storage: Annotated[
        list[str] | None, typer.Option(metavar="DIR:MOUNT", help="Folder to read; may be given more than once.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="K[=V]", help="Variable for the agent; K alone takes your value.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(metavar="K[=V]", help="The same, but masked in all that is recorded.")
    ] = None,
    timeout: Annotated[int, typer.Option(metavar="S", help="Seconds the run may take.")] = 7200,
    resume: Annotated[str, typer.Option(metavar="RUN", help="Continue the session and folder of this run.")] = "",
    output: Annotated[
        pathlib.Path | None, typer.Option(metavar="DIR", help="Write the changed folder here at the end.")
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="What the sandbox is made with; `process` isolates nothing.")
    ] = "auto",
    isolation: Annotated[
        Tier | None, typer.Option(help="Least isolation to accept. [of the server: process]", show_default=False)
    ] = None,
    workdir: Annotated[
        str, typer.Option(metavar="PATH", help="Where the agent starts in the sandbox. [the artifact's MOUNT]")
    ] = "",
    group: Annotated[str, typer.Option(help="Runner group, with --server only.")] = "vm0/default",
    server: ServerOption = "",
    token_file: TokenFileOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print events, phases and the run as NDJSON.")] = False,
) -> int:
    """Run an agent and wait for its end; the exit code is the agent's.

    Without --server, server and runner are started inside this process. 124: timed out, 125: vm0 itself failed,
    128+n: signal n ended the agent, 130: interrupted. The first Ctrl-C cancels the run, the second leaves.
    """
    from vm0.cli import run_command
    from vm0.cli.run_options import RunOptions

    options = RunOptions(
        prompt=prompt, agent=agent, artifact=artifact, storages=storage or (), env=env or (), secrets=secret or (),
        timeout_s=timeout, resume=resume, output=output, backend=backend, isolation=isolation, workdir=workdir,
        group=group, server=server, token_file=token_file, json=json,
    )  # fmt: skip
    return run_command.run(options)


@app.command("server")
def server_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8700,
    state_dir: StateDirOption = None,
) -> int:
    """Run the server in the foreground until SIGTERM or Ctrl-C; its address is the first line on stdout."""
    from vm0.cli import server_command

    return server_command.serve(host=host, port=port, state_dir=state_dir)


@runner_app.command("start")
def runner_start(
    config: Annotated[pathlib.Path | None, typer.Option(metavar="FILE", help="TOML file; options win over it.")] = None,
    server: ServerOption = "",
    token: Annotated[str, typer.Option(metavar="T", help="Runner token; --token-file is safer.")] = "",
    token_file: RunnerTokenFileOption = None,
    group: Annotated[str, typer.Option(help="Group whose runs to execute. [vm0/default]", show_default=False)] = "",
    backend: Annotated[Backend | None, typer.Option(help="What sandboxes are made with. [auto]")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, max=1024, help="Runs at the same time. [1]")] = None,
    state_dir: StateDirOption = None,
) -> int:
    """Execute runs in the foreground until SIGTERM or Ctrl-C, which finish the runs under way first."""
    from vm0.cli import runner_command

    return runner_command.start(
        config=config, server=server, token=token, token_file=token_file, group=group,
        backend=backend, max_concurrent=max_concurrent, state_dir=state_dir,
    )  # fmt: skip


@token_app.command("create")
def token_create(
    kind: Annotated[TokenKind, typer.Option(help="Who will use it.")],
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Make a token for the server of this state directory and print it; it is not shown again."""
    from vm0.cli import server_command

    return server_command.make_token(kind=kind, state_dir=state_dir, as_json=json)


@runs_app.command("ls")
def runs_ls(
    status: Annotated[Status | None, typer.Option(help="Only runs with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10000, help="How many, newest first.")] = 20,
    server: ServerOption = "",
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """List runs, newest first."""
    from vm0.cli import runs_command

    return runs_command.list_runs(status=status, limit=limit, server=server, token_file=token_file, as_json=json)


@runs_app.command("show")
def runs_show(
    run: RunArgument, server: ServerOption = "", token_file: TokenFileOption = None, json: JsonOption = False
) -> int:
    """Show a run: outcome, isolation, checkpoint, and each phase with its times; `>` marks the first abnormal one."""
    from vm0.cli import runs_command

    return runs_command.show(run, server=server, token_file=token_file, as_json=json)


@runs_app.command("logs")
def runs_logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the run has ended.")] = False,
    system: Annotated[bool, typer.Option("--system", help="The guest's own log instead of the agent's.")] = False,
    server: ServerOption = "",
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Print what the agent said and did."""
    from vm0.cli import runs_command

    return runs_command.logs(run, follow=follow, system=system, server=server, token_file=token_file, as_json=json)


@runs_app.command("cancel")
def runs_cancel(
    run: RunArgument, server: ServerOption = "", token_file: TokenFileOption = None, json: JsonOption = False
) -> int:
    """Ask for the end of a run; harmless when it has ended."""
    from vm0.cli import runs_command

    return runs_command.cancel(run, server=server, token_file=token_file, as_json=json)


@image_app.command("build")
def image_build(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE|FILE.toml", help="A shipped recipe, or a file with one.")
    ] = "base",
    arch: Annotated[Architecture | None, typer.Option(help="Machine to build for. [this one]")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing: the build has no network at all.")] = False,
    from_dir: Annotated[
        pathlib.Path | None,
        typer.Option("--from", metavar="DIR", help="Take packages (.deb, .tgz) from here instead of the network."),
    ] = None,
    save_sources: Annotated[
        pathlib.Path | None, typer.Option(metavar="DIR", help="Copy the packages to DIR, for --from on another host.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Use nothing that is cached, get the newest packages.")
    ] = False,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Build the image of a recipe, unless it is there, and print its directory. Needs root."""
    from vm0.cli import image_command

    return image_command.build(
        recipe, arch=arch, offline=offline, from_dir=from_dir, save_sources=save_sources, fresh=fresh,
        state_dir=state_dir, as_json=json,
    )  # fmt: skip


@image_app.command("ls")
def image_ls(state_dir: StateDirOption = None, json: JsonOption = False) -> int:
    """List images, newest first."""
    from vm0.cli import image_command

    return image_command.list_images(state_dir=state_dir, as_json=json)


@image_app.command("show")
def image_show(
    name: Annotated[str, typer.Argument(metavar="KEY|RECIPE", help="Key, its unique beginning, or a recipe's name.")],
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> int:
    """Show an image: what it was made from, versions, sizes; the newest one of a recipe."""
    from vm0.cli import image_command

    return image_command.show(name, state_dir=state_dir, as_json=json)


@image_app.command("rm")
def image_rm(
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Key, or its unique beginning.")] = None,
    old: Annotated[bool, typer.Option("--old", help="All whose guest code is not that of this vm0.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Also the trees that make the next build of a recipe quick.")
    ] = False,
    state_dir: StateDirOption = None,
) -> int:
    """Remove images. Running virtual machines keep theirs until they end."""
    from vm0.cli import image_command

    return image_command.remove(keys or [], old=old, cache=cache, state_dir=state_dir)
