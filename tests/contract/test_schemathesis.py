"""Generated requests, valid and invalid, against a live server: never 5xx, answers as the OpenAPI page says."""

from __future__ import annotations

import asyncio
import pathlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.contract.plane import Claimed, Plane, running_plane
from vm0.server import openapi
from vm0.server.app import documented_app

EXAMPLES = 15
DOCUMENT = openapi.document(documented_app())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS: list[Any] = [result.ok() for result in SCHEMA.get_all_operations()]  # type: ignore[union-attr]
# nothing about /healthz can be invalid: it has no input at all
CASES = [(op, mode) for op in OPERATIONS for mode in GenerationMode if op.path != "/healthz" or mode.is_positive]


class LiveServer:
    """A server on a loop of its own thread, since generated requests are sent synchronously."""

    def __init__(self, state_dir: pathlib.Path) -> None:
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.plane: Plane
        self.lease: Claimed
        self._thread = threading.Thread(target=self._run, args=(state_dir,))
        self._thread.start()
        assert self._ready.wait(30)

    def _run(self, state_dir: pathlib.Path) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve(state_dir))

    async def _serve(self, state_dir: pathlib.Path) -> None:
        async with running_plane(state_dir) as self.plane:
            self.lease = await self.plane.submit_and_claim(artifact={"name": "work", "mountPath": "/work"})
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("schemathesis") / "state")
    yield server
    server.close()


@pytest.mark.parametrize(("operation", "mode"), CASES, ids=lambda value: getattr(value, "label", None) or value.value)
def test_generated_requests(live: LiveServer, operation: Any, mode: GenerationMode) -> None:
    callers = operation.definition.raw["x-callers"]
    tokens = {"user": live.plane.user, "runner": live.plane.runner_token, "sandbox": live.lease.token}
    token = next((tokens[caller] for caller in callers if caller in tokens), "none")
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, real=st.booleans())
    def send(case: Any, real: bool) -> None:
        if real and "runId" in (case.path_parameters or {}):
            case.path_parameters["runId"] = live.lease.run_id
        if real and isinstance(case.body, dict) and "runId" in case.body:
            case.body["runId"] = live.lease.run_id if callers != ["sandbox", "runner"] else str(uuid.uuid4())
        for waiting in ("wait", "waitSeconds"):
            for where in (case.query, case.body):
                if isinstance(where, dict) and isinstance(where.get(waiting), (int, float)):
                    where[waiting] = min(where[waiting], 0.01)
        response = case.call(base_url=live.plane.handle.url, headers={"Authorization": f"Bearer {token}"}, timeout=20)
        assert response.status_code < 500, (response.status_code, response.text)
        if response.status_code >= 400:
            assert response.json().keys() == {"error"}, response.text
        case.validate_response(response, checks=[response_schema_conformance])

    send()
