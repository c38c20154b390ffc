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
from vm0.cli.local_sandboxes import DEFAULT_IMAGE, IMAGE_OF_AGENT, VM_BACKENDS, Wanted, local_config
from vm0.cli.output_folder import check_target, write_output
from vm0.cli.progress import JsonProgress, Progress, progress_for
from vm0.cli.run_follow import Follower
from vm0.cli.run_options import FolderMount, RunOptions, folder_mount, run_request
from vm0.cli.run_summary import exit_code, runner_words
from vm0.cli.steps import steps_for
from vm0.contracts import names
from vm0.contracts.runs import Isolation, RunRequest, RunView, StorageMount
from vm0.contracts.storages import StorageType


def run(options: RunOptions) -> int:
    """Execute one run and wait for it; the exit code is the agent's."""
    settings = Settings.from_environment()
    plan = _Plan(options, settings)
    if plan.remote is None:
        _prepare(plan)
    progress = progress_for(as_json=options.json, plain=settings.plain)
    try:
        return asyncio.run(_run(plan, progress))
    finally:
        progress.close()


def _prepare(plan: _Plan) -> None:
    """Have what the backend needs, before anything is started; the first time that takes a minute or two."""
    home, wanted = plan.settings.state_dir, plan.wanted
    if wanted.backend not in VM_BACKENDS:
        from vm0.runner.backends import make_factory

        make_factory(local_config(home, home / "runner", wanted))
        return
    from vm0.cli.vm_preparation import agreed, asked, prepare_backend
    from vm0.image import BuildOptions

    consent = agreed if plan.options.yes else asked
    with contextlib.closing(steps_for(plain=plan.settings.plain or plan.options.json)) as steps:
        prepare_backend(home, wanted, steps, consent=consent, build=BuildOptions(offline=plan.options.offline))


async def _run(plan: _Plan, progress: Progress) -> int:
    with handled_interrupts() as interrupts:
        try:
            return await _interruptible(plan, progress, interrupts)
        except asyncio.CancelledError:
            if interrupts.count:
                raise Interrupted from None
            raise


async def _interruptible(plan: _Plan, progress: Progress, interrupts: Interrupts) -> int:
    options = plan.options
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
        self._check_sandbox_options()
        self.wanted = Wanted(
            backend=options.backend, image=options.image or IMAGE_OF_AGENT.get(options.agent, DEFAULT_IMAGE)
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

    def _check_sandbox_options(self) -> None:
        options = self.options
        given = [name for name, value in (("--image", options.image), ("--offline", options.offline)) if value]
        if options.backend != "auto":
            given.append("--backend")
        if self.remote is not None and given:
            raise UsageError(
                f"{given[-1]} is for runs on this machine; the server's runners have their own",
                hint="use --isolation to demand a tier, or leave --server out",
            )
        if options.image and options.backend not in VM_BACKENDS:
            raise UsageError(
                f"--image is for virtual machines; the {options.backend} backend has none",
                hint="leave --image or --backend out",
            )

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
    from vm0.cli.local import local_runner, local_server

    progress.doing("starting server and runner")
    home = plan.settings.state_dir
    server = await stack.enter_async_context(local_server(home, progress.note))
    runner = await stack.enter_async_context(local_runner(home, server, plan.group, plan.wanted, progress.step))
    progress.note(runner_words(plan.wanted.backend, runner.backend, runner.isolation, runner.facts))
    least = plan.options.isolation
    if least is not None and not runner.isolation.at_least(Isolation(least)):
        raise CliError(
            f"the {runner.backend} backend offers isolation `{runner.isolation.value}` here, less than the demanded "
            f"`{least}`",
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
