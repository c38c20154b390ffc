"""`vm0 run`: from the command line to a run, and from its end back to an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import secrets
import sys

from vm0.cli.api import ApiClient, ApiError
from vm0.cli.config import Settings
from vm0.cli.connection import remote
from vm0.cli.errors import CliError, Interrupted, UsageError
from vm0.cli.folder_upload import Uploaded, upload
from vm0.cli.interrupts import Interrupts, handled_interrupts
from vm0.cli.output_folder import check_target, write_output
from vm0.cli.progress import JsonProgress, Progress, progress_for
from vm0.cli.run_follow import Follower
from vm0.cli.run_options import FolderMount, RunOptions, folder_mount, run_request
from vm0.cli.run_summary import exit_code
from vm0.contracts import names
from vm0.contracts.runs import Isolation, RunRequest, RunView, StorageMount
from vm0.contracts.storages import StorageType

PROCESS_WARNING = (
    "the process backend isolates nothing (tier `process`): the agent runs as a local process with your rights"
)


def run(options: RunOptions) -> int:
    """Execute one run and wait for it; the exit code is the agent's."""
    settings = Settings.from_environment()
    progress = progress_for(as_json=options.json, plain=settings.plain)
    try:
        return asyncio.run(_run(options, settings, progress))
    finally:
        progress.close()


async def _run(options: RunOptions, settings: Settings, progress: Progress) -> int:
    with handled_interrupts() as interrupts:
        try:
            return await _interruptible(options, settings, progress, interrupts)
        except asyncio.CancelledError:
            if interrupts.count:
                raise Interrupted from None
            raise


async def _interruptible(options: RunOptions, settings: Settings, progress: Progress, interrupts: Interrupts) -> int:
    plan = _Plan(options, settings)
    async with contextlib.AsyncExitStack() as stack:
        client = await _client(stack, plan, progress)
        request, source = await plan.request(client, progress)
        created = await client.create_run(request)
        progress.note(f"run {created.run_id} on {client.url}")
        ended, result = await _followed(client, created, progress, interrupts)
        progress.ended(ended)
        if result:
            progress.data(result)
        try:
            if options.output is not None:
                await _write_output(client, ended, options.output, source, progress)
        finally:
            if options.json:
                JsonProgress.print_run(ended)
        return exit_code(ended)


class _Plan:
    """The options after everything that can be checked without a server was checked."""

    def __init__(self, options: RunOptions, settings: Settings) -> None:
        self.options, self.settings = options, settings
        self.remote = remote(settings, options.server, options.token_file)
        if self.remote is not None and options.backend != "auto":
            raise UsageError(
                "--backend is for runs on this machine; the server's runners have their own",
                hint="use --isolation to demand a tier, or leave --server out",
            )
        self.group = options.group if self.remote is not None else f"local/run-{secrets.token_hex(6)}"
        self.prompt = read_prompt(options.prompt)
        self.artifact = (
            folder_mount(options.artifact, "--artifact", names.DEFAULT_WORKING_DIR) if options.artifact else None
        )
        self.storages = [folder_mount(text, "--storage") for text in options.storages]
        if options.output is not None:
            if self.artifact is None and not options.resume:
                raise UsageError("--output needs a folder that the run works on", hint="add --artifact DIR")
            check_target(options.output)
        for mount in [*self.storages, *([self.artifact] if self.artifact else [])]:
            if not mount.folder.is_dir():
                what = "is not a folder" if mount.folder.exists() else "does not exist"
                raise CliError(f"{mount.folder} {what}", hint="check the path given to --artifact or --storage")
        self._body([StorageMount(name="x", mount_path=mount.mount_path) for mount in self.storages], None, None)

    async def request(self, client: ApiClient, progress: Progress) -> tuple[RunRequest, Uploaded | None]:
        """The run request, with every folder uploaded; and the artifact as it was uploaded."""
        resume = await client.full_run_id(self.options.resume) if self.options.resume else None
        storages = []
        for mount in self.storages:
            uploaded = await _uploaded(client, mount, StorageType.VOLUME, progress)
            storages.append(_mount(uploaded, mount))
        source = artifact = None
        if self.artifact is not None:
            source = await _uploaded(client, self.artifact, StorageType.ARTIFACT, progress)
            artifact = _mount(source, self.artifact)
        return self._body(storages, artifact, resume), source

    def _body(self, storages: list[StorageMount], artifact: StorageMount | None, resume: str | None) -> RunRequest:
        if artifact is None and self.artifact is not None:
            artifact = StorageMount(name="x", mount_path=self.artifact.mount_path)
        return run_request(
            self.options, prompt=self.prompt, group=self.group, caller=self.settings.variables,
            artifact=artifact, storages=storages, resume_run_id=resume,
        )  # fmt: skip


def read_prompt(text: str) -> str:
    """The prompt itself, or stdin for `-`; raises UsageError for one that no run can have."""
    if text != "-":
        return text
    data = sys.stdin.buffer.read(names.MAX_PROMPT_BYTES + 1)
    if len(data) > names.MAX_PROMPT_BYTES:
        raise UsageError(
            f"the prompt on stdin is longer than {names.MAX_PROMPT_BYTES} bytes",
            hint="put long input into a file of the --artifact folder and name it in the prompt",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"the prompt on stdin is not UTF-8 text: {exc.reason} at byte {exc.start}",
            hint="put binary data into a file of the --artifact folder",
        ) from None


async def _client(stack: contextlib.AsyncExitStack, plan: _Plan, progress: Progress) -> ApiClient:
    """A client of the server to use; for a local run, server and runner are there as long as `stack` is open."""
    if plan.remote is not None:
        return await stack.enter_async_context(ApiClient(plan.remote.url, plan.remote.token))
    from vm0.cli.local import check_backend, local_runner, local_server

    backend = plan.options.backend
    check_backend(plan.settings.state_dir, backend)
    progress.doing("starting server and runner")
    server = await stack.enter_async_context(local_server(plan.settings.state_dir, progress.note))
    tier = await stack.enter_async_context(local_runner(plan.settings.state_dir, server, plan.group, backend))
    if tier is Isolation.PROCESS:
        progress.note(PROCESS_WARNING)
    least = plan.options.isolation
    if least is not None and not tier.at_least(Isolation(least)):
        raise CliError(
            f"the {backend} backend offers isolation `{tier.value}`, less than the demanded `{least}`",
            hint="choose another --backend, or accept less with --isolation",
        )
    return await stack.enter_async_context(ApiClient(server.url, server.user_token))


async def _uploaded(client: ApiClient, mount: FolderMount, kind: StorageType, progress: Progress) -> Uploaded:
    progress.doing(f"storing {mount.folder}")
    found = await upload(client, mount.folder, kind, progress.note)
    reused = ", unchanged" if found.reused else ""
    progress.note(f"{mount.folder}: {len(found.entries)} files, version {found.version_id[:12]}{reused}")
    return found


def _mount(uploaded: Uploaded, mount: FolderMount) -> StorageMount:
    return StorageMount(name=uploaded.name, mount_path=mount.mount_path, version_id=uploaded.version_id)


async def _followed(
    client: ApiClient, created: RunView, progress: Progress, interrupts: Interrupts
) -> tuple[RunView, str]:
    """The run at its end and the agent's final answer. The first interrupt cancels the run, and we go on waiting."""
    cancels: list[asyncio.Task[None]] = []

    def cancel() -> None:
        progress.note("cancelling the run; Ctrl-C again leaves without waiting")
        cancels.append(asyncio.create_task(_cancel(client, created.run_id, progress), name="cancel run"))

    interrupts.on_first = cancel
    if interrupts.count:  # while we were not able to listen
        cancel()
    follower = Follower(client, created.run_id, progress)
    try:
        return await follower.to_end(), follower.result
    except asyncio.CancelledError:
        progress.note(f"left; `vm0 runs show {created.run_id}` tells how it ends")
        raise
    finally:
        interrupts.on_first = None
        for task in cancels:
            task.cancel()
        await asyncio.gather(*cancels, return_exceptions=True)


async def _cancel(client: ApiClient, run_id: str, progress: Progress) -> None:
    try:
        await client.cancel(run_id)
    except ApiError as exc:
        progress.note(f"the run could not be cancelled: {exc}")


async def _write_output(
    client: ApiClient, run: RunView, output: pathlib.Path, source: Uploaded | None, progress: Progress
) -> None:
    if run.checkpoint is None:
        progress.note(f"the run left no checkpoint; {output} is as it was")
        return
    written = await write_output(client, run.checkpoint, output, source)
    removed = f", removed {written.removed} that the run deleted" if written.removed else ""
    progress.note(f"wrote {written.files} files to {written.folder}{removed}")
    if written.kept:
        progress.note(f"kept {written.kept} files that the run deleted, because they changed here meanwhile")
    for line in written.refused:
        progress.note(f"not written: {line}")
