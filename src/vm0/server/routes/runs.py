"""`/api/runs`: what a user does with runs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

from fastapi import Response
from sqlalchemy.engine import Connection

from vm0.contracts import codec, names
from vm0.contracts.codec import limited
from vm0.contracts.runs import EventPage, LogsView, RunList, RunRequest, RunStatus, RunView
from vm0.server import queue
from vm0.server.context import Change, ServerContext
from vm0.server.db import events, runs, telemetry
from vm0.server.domain.events import first_missing
from vm0.server.errors import not_found
from vm0.server.notifier import run_topic, runner_topic
from vm0.server.routing import MIB, Call, Caller, RouteSpec, contract_router, declare
from vm0.server.submit import submit
from vm0.server.views import run_views

router = contract_router("runs")
USER = (Caller.USER,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunsQuery:
    """`cursor` is `nextCursor` of the page before."""

    limit: int = limited(50, minimum=1, maximum=200)
    cursor: int | None = limited(None, minimum=1)
    status: RunStatus | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventsQuery:
    """Events with a number above `after`; waits up to `wait` seconds for the first of them."""

    after: int = limited(-1, minimum=-1)
    limit: int = limited(500, minimum=1, maximum=1000)
    wait: float = limited(0.0, minimum=0, maximum=30)


@dataclasses.dataclass(frozen=True, slots=True)
class _Page:
    texts: list[str]
    next_after: int
    complete: bool
    missing: int | None


def run_id_of(call: Call[object]) -> str:
    run_id = call.path("runId")
    if not re.fullmatch(names.UUID, run_id):
        raise not_found("run")
    return run_id


@declare(
    router,
    RouteSpec(
        method="POST",
        path="/api/runs",
        callers=USER,
        body=RunRequest,
        answer=RunView,
        status=201,
        max_body_bytes=16 * MIB,
    ),
)
async def create(call: Call[RunRequest]) -> RunView:
    """Queue a run. Storage versions are resolved now: what is uploaded later does not change it."""
    now_ms = call.context.clock.now_ms()
    return await call.context.change(lambda connection: submit(connection, call.user_id, call.body, now_ms))


@declare(router, RouteSpec(method="GET", path="/api/runs", callers=USER, query=RunsQuery, answer=RunList))
async def index(call: Call[None]) -> RunList:
    """Your runs, newest first."""
    query = call.query(RunsQuery)

    def find(connection: Connection) -> RunList:
        rows = runs.page(connection, call.user_id, before=query.cursor, status=query.status, limit=query.limit + 1)
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        return RunList(runs=run_views(connection, rows), next_cursor=str(rows[-1].num) if more else None)

    return await call.context.database.read(find)


@declare(router, RouteSpec(method="GET", path="/api/runs/{runId}", callers=USER, answer=RunView))
async def show(call: Call[None]) -> RunView:
    """One run with its timeline, outcome and checkpoint."""
    run_id = run_id_of(call)

    def find(connection: Connection) -> RunView:
        row = queue.owned(connection, run_id, call.user_id)
        return run_views(connection, [runs.details(connection, row.num)])[0]

    return await call.context.database.read(find)


@declare(router, RouteSpec(method="POST", path="/api/runs/{runId}/cancel", callers=USER, answer=RunView))
async def cancel(call: Call[None]) -> RunView:
    """End a run: at once if it waits, by its runner if it runs; a finished one stays as it is."""
    run_id = run_id_of(call)
    times = call.context.times()

    def apply(connection: Connection) -> Change[RunView]:
        row = queue.owned(connection, run_id, call.user_id)
        queue.cancel(connection, row, times)
        (view,) = run_views(connection, [runs.details(connection, row.num)])
        return Change(view, (run_topic(run_id), runner_topic(row.state.runner_id or "")))

    return await call.context.change(apply)


@declare(
    router,
    RouteSpec(method="GET", path="/api/runs/{runId}/events", callers=USER, query=EventsQuery, answer=EventPage),
)
async def list_events(call: Call[None]) -> Response:
    """The events of a run, in order and without a gap."""
    run_id = run_id_of(call)
    query = call.query(EventsQuery)
    deadline = asyncio.get_running_loop().time() + query.wait
    with call.context.notifier.subscribed(run_topic(run_id)) as changed:
        while True:
            changed.clear()
            page = await _read_page(call.context, run_id, call.user_id, query)
            left = deadline - asyncio.get_running_loop().time()
            if page.texts or page.complete or left <= 0 or call.context.notifier.closed:
                return await call.context.in_thread(_page_response, page)
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                pass


@declare(router, RouteSpec(method="GET", path="/api/runs/{runId}/logs", callers=USER, answer=LogsView))
async def logs(call: Call[None]) -> Response:
    """System log, metrics, timed operations and network log, as far as they are kept."""
    run_id = run_id_of(call)

    def find(connection: Connection) -> bytes:
        row = queue.owned(connection, run_id, call.user_id)
        return codec.dumps(telemetry.logs(connection, row.num))

    return Response(await call.context.database.read(find), media_type="application/json")


async def _read_page(context: ServerContext, run_id: str, user_id: str, query: EventsQuery) -> _Page:
    def find(connection: Connection) -> _Page:
        run = queue.owned(connection, run_id, user_id)
        row = runs.details(connection, run.num)
        texts, last = events.page(
            connection, run.num, after=query.after, before=row.events_contiguous, limit=query.limit
        )
        return _Page(
            texts=texts,
            next_after=last,
            complete=run.state.status.terminal and last >= row.events_contiguous - 1,
            missing=first_missing(row.events_contiguous, row.events_highest, row.event_count),
        )

    return await context.database.read(find)


def _page_response(page: _Page) -> Response:
    """An EventPage around the stored texts, which are JSON already and are not parsed again."""
    rest = {"nextAfter": page.next_after, "complete": page.complete, "missing": page.missing}
    known = {name: value for name, value in rest.items() if value is not None}
    body = f'{{"events":[{",".join(page.texts)}],{json.dumps(known, separators=(",", ":"))[1:]}'
    return Response(body.encode("ascii"), media_type="application/json")
