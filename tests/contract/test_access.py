"""Who may call what: a row per route, a column per caller. A new route without a row fails."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import jwt
import pytest
import pytest_asyncio

from tests.contract.plane import Claimed, Plane, running_plane
from vm0.server.app import documented_app
from vm0.server.routing import RouteSpec


class Row(NamedTuple):
    """The status each caller gets for the owner's run, claimed by a runner."""

    anonymous: int
    other_user: int
    owner: int
    runner: int
    foreign_sandbox: int  # the sandbox token of another user's run
    sibling_sandbox: int  # the sandbox token of another run of the same user
    own_sandbox: int


USER_ONLY = Row(401, 200, 200, 403, 403, 403, 403)  # answers are about the caller's own things only
OWNER_ONLY = Row(401, 404, 200, 403, 403, 403, 403)
RUNNER_ONLY = Row(401, 403, 403, 200, 403, 403, 403)
SANDBOX_ONLY = Row(401, 403, 403, 403, 401, 401, 200)
SIGNED_ONLY = Row(403, 403, 403, 403, 403, 403, 403)  # no token replaces a signature
WEBHOOKS = "/api/webhooks/agent"

ROWS: dict[tuple[str, str], Row] = {
    ("POST", "/api/runs"): USER_ONLY._replace(other_user=201, owner=201),
    ("GET", "/api/runs"): USER_ONLY,
    ("GET", "/api/runs/{runId}"): OWNER_ONLY,
    ("POST", "/api/runs/{runId}/cancel"): OWNER_ONLY,
    ("GET", "/api/runs/{runId}/events"): OWNER_ONLY,
    ("GET", "/api/runs/{runId}/logs"): OWNER_ONLY,
    ("POST", "/api/storages/prepare"): USER_ONLY,
    ("POST", "/api/storages/commit"): OWNER_ONLY._replace(other_user=400),
    ("GET", "/api/storages/{storageType}/{name}/versions/{version}"): OWNER_ONLY,
    ("GET", "/api/runners"): USER_ONLY,
    ("POST", "/api/runners/poll"): RUNNER_ONLY,
    ("POST", "/api/runners/jobs/{runId}/claim"): RUNNER_ONLY,
    ("POST", "/api/runners/cancellations"): RUNNER_ONLY,
    ("POST", "/api/runners/jobs/{runId}/lease"): RUNNER_ONLY,
    ("POST", "/api/runners/jobs/{runId}/release"): RUNNER_ONLY,
    ("POST", "/api/runners/heartbeat"): RUNNER_ONLY,
    ("POST", f"{WEBHOOKS}/events"): SANDBOX_ONLY,
    ("POST", f"{WEBHOOKS}/heartbeat"): SANDBOX_ONLY,
    ("POST", f"{WEBHOOKS}/telemetry"): SANDBOX_ONLY,
    ("POST", f"{WEBHOOKS}/checkpoints"): SANDBOX_ONLY,
    ("POST", f"{WEBHOOKS}/checkpoints/prepare-history"): SANDBOX_ONLY,
    ("POST", f"{WEBHOOKS}/complete"): SANDBOX_ONLY._replace(runner=200),
    ("POST", f"{WEBHOOKS}/storages/prepare"): SANDBOX_ONLY,
    ("POST", f"{WEBHOOKS}/storages/commit"): SANDBOX_ONLY,
    ("GET", "/api/objects/{key:path}"): SIGNED_ONLY,
    ("PUT", "/api/objects/{key:path}"): SIGNED_ONLY,
    ("GET", "/healthz"): Row(200, 200, 200, 200, 200, 200, 200),
}


def declared() -> dict[tuple[str, str], RouteSpec]:
    specs = [getattr(getattr(r, "endpoint", None), "route_spec", None) for r in documented_app().routes]
    return {(spec.method, spec.path): spec for spec in specs if spec is not None}


def test_every_route_has_a_row() -> None:
    assert set(declared()) == set(ROWS)


def test_every_route_of_the_application_was_declared() -> None:
    """Nothing gets in beside `declare`, except the two pages about the API itself."""
    undeclared = {
        getattr(route, "path", repr(route))
        for route in documented_app().routes
        if getattr(getattr(route, "endpoint", None), "route_spec", None) is None
    }
    assert undeclared == {"/openapi.json", "/docs"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    path: pathlib.Path = tmp_path_factory.mktemp("access")
    async with running_plane(path / "state") as plane:
        yield plane


async def request_for(plane: Plane, route: tuple[str, str], lease: Claimed, versions: dict[str, str]) -> Any:
    """The path and a body that would succeed for the right caller."""
    method, path = route
    storage = {"storageName": "work", "storageType": "artifact", "files": []}
    run = {"runId": lease.run_id}
    bodies: dict[str, Any] = {
        "/api/runs": {"prompt": "x", "cliAgentType": "command"},
        "/api/storages/prepare": {**storage, "storageName": "mine"},
        "/api/storages/commit": {**storage, "versionId": versions["work"]},
        "/api/runners/poll": {"group": "vm0/default"},
        "/api/runners/jobs/{runId}/claim": lease.runner.body(),
        "/api/runners/jobs/{runId}/lease": lease.runner.body(epoch=lease.epoch),
        "/api/runners/jobs/{runId}/release": {
            "runnerId": lease.runner.runner_id,
            "epoch": lease.epoch,
            "reason": "test",
        },
        "/api/runners/cancellations": {"runnerId": lease.runner.runner_id},
        "/api/runners/heartbeat": {"runnerId": lease.runner.runner_id, "group": "vm0/default"},
        f"{WEBHOOKS}/events": {**run, "events": [{"type": "a", "sequenceNumber": 0}]},
        f"{WEBHOOKS}/heartbeat": run,
        f"{WEBHOOKS}/telemetry": {**run, "systemLog": "x"},
        f"{WEBHOOKS}/checkpoints": {**run, "cliAgentType": "command"},
        f"{WEBHOOKS}/checkpoints/prepare-history": {**run, "hash": "0" * 64, "size": 1},
        f"{WEBHOOKS}/complete": {**run, "exitCode": 1, "epoch": lease.epoch},
        f"{WEBHOOKS}/storages/prepare": {**storage, **run},
        f"{WEBHOOKS}/storages/commit": {**storage, **run, "versionId": versions["work"]},
    }
    names = {"runId": lease.run_id, "storageType": "artifact", "name": "work", "version": "head"}
    where = path.replace("{key:path}", f"alice/artifact/work/{versions['work']}/manifest.json")
    for name, value in names.items():
        where = where.replace(f"{{{name}}}", value)
    return where, bodies.get(path) if method == "POST" else None


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ROWS, ids=lambda route: " ".join(route))
async def test_each_caller_gets_what_the_table_says(shared: Plane, route: tuple[str, str]) -> None:
    artifact = {"name": "work", "mountPath": "/work"}
    lease = await shared.submit_and_claim(artifact=artifact)
    foreign = await shared.claim(await shared.submit(shared.other, artifact=artifact))
    sibling = await shared.submit_and_claim(artifact=artifact)
    version = await _empty_version(shared)
    where, body = await request_for(shared, route, lease, {"work": version})
    tokens = {
        "anonymous": None,
        "other_user": shared.other,
        "runner": shared.runner_token,
        "foreign_sandbox": foreign.token,
        "sibling_sandbox": sibling.token,
        "own_sandbox": lease.token,
        "owner": shared.user,
    }
    found = {}
    order = sorted(tokens, key=lambda caller: getattr(ROWS[route], caller) < 400)  # those that may change it last
    for caller in order:
        headers = {} if tokens[caller] is None else {"authorization": f"Bearer {tokens[caller]}"}
        async with shared.http.request(route[0], where, json=body, headers=headers) as response:
            found[caller] = response.status
            text = await response.text()
        if response.status >= 400:
            assert '"error"' in text
            assert lease.run_id not in text or caller == "owner" or response.status == 404, text
        if caller == "other_user" and route[0] == "GET":
            assert lease.run_id not in text or response.status == 404, "something of the owner's was shown"
    assert Row(**found) == ROWS[route]


async def _empty_version(plane: Plane) -> str:
    body: dict[str, Any] = {"storageName": "work", "storageType": "artifact", "files": []}
    prepared = await plane.call("POST", "/api/storages/prepare", plane.user, body)
    for name, upload in (prepared.get("uploads") or {}).items():
        assert name in ("archive", "manifest")
        await plane.put(upload["presignedUrl"], b"{}")
    body["versionId"] = prepared["versionId"]
    await plane.call("POST", "/api/storages/commit", plane.user, body)
    return str(prepared["versionId"])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwdw==",
        "Bearer vm0_user_",
        "Bearer vm0_user_" + "x" * 43,
        "Bearer vm0_runner_../../master.key",
        "Bearer vm0_sandbox_",
        "Bearer vm0_sandbox_a.b.c",
        "Bearer vm0_sandbox_eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJydW5JZCI6IngifQ.",
        "Bearer " + "x" * 10_000,
        "Bearer \u00e9",
    ],
)
async def test_what_is_not_a_token(shared: Plane, header: str) -> None:
    sent = {"authorization": header} if header else {}
    async with shared.http.get("/api/runs", headers=sent) as response:
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert (await response.json())["error"]["code"] == "UNAUTHORIZED"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_forged_sandbox_token_is_refused(shared: Plane) -> None:
    lease = await shared.submit_and_claim()
    claims = jwt.decode(lease.token.removeprefix("vm0_sandbox_"), options={"verify_signature": False})
    assert set(claims) == {"userId", "runId", "scope", "epoch", "iat", "exp"}
    forged = "vm0_sandbox_" + jwt.encode(claims, "0" * 32, algorithm="HS256")
    body = {"runId": lease.run_id}
    await shared.call("POST", f"{WEBHOOKS}/heartbeat", forged, body, want="UNAUTHORIZED")
    await shared.call("POST", f"{WEBHOOKS}/heartbeat", lease.token, body)


@pytest.mark.asyncio(loop_scope="module")
async def test_lists_show_only_the_caller_s_runs(shared: Plane) -> None:
    mine, theirs = await shared.submit(), await shared.submit(shared.other)
    for token, run_id, hidden in ((shared.user, mine, theirs), (shared.other, theirs, mine)):
        seen = {run["runId"] for run in (await shared.call("GET", "/api/runs?limit=200", token))["runs"]}
        assert run_id in seen and hidden not in seen
