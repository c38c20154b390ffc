"""`vm0 runs ls/show/logs/cancel`: what the server knows about runs, for people and as JSON."""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
from collections.abc import Awaitable, Callable

from vm0.cli.api import PAGE_RUNS, ApiClient
from vm0.cli.config import Settings
from vm0.cli.connection import connected
from vm0.cli.errors import Interrupted
from vm0.cli.event_lines import clean, lines_of
from vm0.cli.interrupts import handled_interrupts
from vm0.cli.progress import marked
from vm0.cli.run_follow import EVENTS_WAIT_S
from vm0.cli.run_summary import (
    checkpoint_lines,
    duration_words,
    isolation_words,
    outcome_words,
    time_words,
    timeline_rows,
    total_ms,
)
from vm0.cli.table import print_json, print_table
from vm0.contracts.codec import encode
from vm0.contracts.runs import RunList, RunStatus, RunView

PROMPT_WIDTH = 50


def list_runs(*, status: str | None, limit: int, server: str, token_file: pathlib.Path | None, as_json: bool) -> int:
    async def command(client: ApiClient) -> None:
        wanted = RunStatus(status) if status else None
        found: list[RunView] = []
        cursor: str | None = None
        while len(found) < limit:
            page = await client.list_runs(limit=min(PAGE_RUNS, limit - len(found)), status=wanted, cursor=cursor)
            found += page.runs
            cursor = page.next_cursor
            if cursor is None:
                break
        if as_json:
            _print_json(RunList(runs=tuple(found), next_cursor=cursor))
        elif found:
            print_table(("RUN", "STATUS", "AGENT", "CREATED", "TOOK", "ISOLATION", "PROMPT"), map(_row, found))
        else:
            print("no runs", file=sys.stderr)

    return _with_client(command, server, token_file)


def show(run: str, *, server: str, token_file: pathlib.Path | None, as_json: bool) -> int:
    async def command(client: ApiClient) -> None:
        found = await client.run(await client.full_run_id(run))
        if as_json:
            _print_json(found)
        else:
            _print_run(found)

    return _with_client(command, server, token_file)


def logs(run: str, *, follow: bool, system: bool, server: str, token_file: pathlib.Path | None, as_json: bool) -> int:
    async def command(client: ApiClient) -> None:
        run_id = await client.full_run_id(run)
        if system:
            await _print_logs(client, run_id, as_json)
        else:
            await _print_events(client, run_id, follow, as_json)

    return _with_client(command, server, token_file)


def cancel(run: str, *, server: str, token_file: pathlib.Path | None, as_json: bool) -> int:
    async def command(client: ApiClient) -> None:
        found = await client.cancel(await client.full_run_id(run))
        if as_json:
            _print_json(found)
        elif found.status.terminal:
            print(f"run {found.run_id} is {found.status.value}")
        else:
            print(f"run {found.run_id} will be cancelled")

    return _with_client(command, server, token_file)


def _with_client(command: Callable[[ApiClient], Awaitable[None]], server: str, token_file: pathlib.Path | None) -> int:
    async def connected_command() -> None:
        with handled_interrupts() as interrupts:
            try:
                async with connected(Settings.from_environment(), server, token_file) as client:
                    await command(client)
            except asyncio.CancelledError:
                if interrupts.count:
                    raise Interrupted from None
                raise

    asyncio.run(connected_command())
    return 0


async def _print_events(client: ApiClient, run_id: str, follow: bool, as_json: bool) -> None:
    after = -1
    while True:
        page = await client.events(run_id, after=after, wait_s=EVENTS_WAIT_S if follow else 0)
        for event in page.events:
            if as_json:
                print(json.dumps(event, separators=(",", ":")))
            else:
                for line in lines_of(event, max_output_lines=None):
                    print(marked(line).encode(errors="backslashreplace").decode())
        sys.stdout.flush()
        if page.complete or (not follow and page.next_after == after):
            if page.missing is not None:
                print(f"event {page.missing} never arrived; what came after it is not shown", file=sys.stderr)
            return
        after = page.next_after


async def _print_logs(client: ApiClient, run_id: str, as_json: bool) -> None:
    found = await client.logs(run_id)
    if as_json:
        _print_json(found)
        return
    for line in found.system_log.splitlines():
        print(clean(line))
    for operation in found.sandbox_operations:
        ok = "ok" if operation.get("success") else f"failed: {clean(str(operation.get('error', '')))}"
        print(f"{operation.get('ts')} {operation.get('action_type')} {operation.get('duration_ms')} ms {ok}")


def _row(run: RunView) -> tuple[str, ...]:
    prompt = " ".join(clean(run.prompt).split())
    return (
        run.run_id[:8],
        run.status.value,
        run.cli_agent_type.value,
        time_words(run.created_at_ms),
        duration_words(total_ms(run)),
        run.isolation.value if run.isolation else "-",
        prompt if len(prompt) <= PROMPT_WIDTH else f"{prompt[: PROMPT_WIDTH - 1]}…",
    )


def _print_run(run: RunView) -> None:
    facts = {
        "run": run.run_id,
        "status": run.status.value + (" (cancel asked for)" if run.cancel_requested else ""),
        "outcome": outcome_words(run),
        "agent": run.cli_agent_type.value,
        "isolation": f"{isolation_words(run)}; at least {run.least_isolation.value} was demanded",
        "group": run.group,
        "runner": clean(run.runner_name or "-"),
        "attempts": str(run.attempts),
        "created": time_words(run.created_at_ms),
        "took": duration_words(total_ms(run)),
        "events": f"{run.events_contiguous} of {run.events_received} received are without a gap",
        "resumed from": run.resumed_from or "-",
    }
    for name, value in facts.items():
        print(f"{name:<13} {value}")
    for line in checkpoint_lines(run) or ["checkpoint: none"]:
        name, _, value = line.partition(": ")
        print(f"{name:<13} {value}")
    if run.timeline:
        print()
        print_table(("", "START", "PHASE", "TOOK", "REMARK"), timeline_rows(run))


def _print_json(value: object) -> None:
    print_json(encode(value))
