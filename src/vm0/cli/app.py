"""The commands and their options. What a command needs is imported when it is called, so that `vm0 --help` is fast."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from vm0 import __version__
from vm0.cli import vm_app
from vm0.cli.command_parts import (
    Agent,
    Backend,
    BackendOption,
    ImageOption,
    JsonOption,
    OfflineOption,
    RunArgument,
    RunnerTokenFileOption,
    ServerOption,
    StateDirOption,
    Status,
    Tier,
    TokenFileOption,
    TokenKind,
    YesOption,
    command_group,
    needs_command,
)

app = command_group("Run AI coding agents, each run in a sandbox of its own.")
runner_app = command_group("Execute the runs of a server on this host.")
token_app = command_group("Make access tokens.")
runs_app = command_group("Show and cancel runs.")
app.add_typer(runner_app, name="runner")
app.add_typer(token_app, name="token")
app.add_typer(runs_app, name="runs")
app.add_typer(vm_app.image_app, name="image")
app.add_typer(vm_app.snapshot_app, name="snapshot")
app.command("setup")(vm_app.setup)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"vm0 {__version__}")
        raise typer.Exit
    needs_command(context)


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
    backend: BackendOption = "auto",
    image: ImageOption = "",
    offline: OfflineOption = False,
    yes: YesOption = False,
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
        timeout_s=timeout, resume=resume, output=output, backend=backend, image=image, offline=offline, yes=yes,
        isolation=isolation, workdir=workdir,
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


app.command("benchmark")(vm_app.benchmark)
