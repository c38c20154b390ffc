"""The OpenAPI page from the contracts: FastAPI makes the frame, the schemas come from `contracts.schema`."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vm0.contracts import names
from vm0.contracts.errors import ErrorBody
from vm0.contracts.schema import json_schema
from vm0.contracts.storages import StorageType

DEFINITIONS: dict[str, Any] = {}  # schemas of all contracts used by declared routes; grows only at import
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "runId": {"type": "string", "pattern": f"^{names.UUID}$"},
    "storageType": {"type": "string", "enum": [kind.value for kind in StorageType]},
    "name": {"type": "string", "pattern": f"^{names.STORAGE_NAME}$"},
    "version": {"type": "string", "pattern": f"^(?:head|{names.SHA256})$"},
    "key": {"type": "string", "minLength": 1},
}
ERRORS = {
    "400": "bad input",
    "401": "no token, an unknown one, or one for another run",
    "403": "may not do this",
    "404": "not there, or not yours",
    "405": "wrong method",
    "409": "somebody else was first, or the lease is lost",
    "413": "too large",
    "500": "a bug of the server",
    "503": "storage full, or closing",
}


def operation(
    *, body: type | None, query: type | None, answer: type | None, status: int, path: str, callers: list[str]
) -> dict[str, Any]:
    """What FastAPI cannot see of a route, in OpenAPI's terms."""
    extra: dict[str, Any] = {
        "parameters": [_path_parameter(name) for name in re.findall(r"{(\w+)", path)] + _query_parameters(query),
        "responses": {str(status): _response("done", answer)}
        | {code: _response(meaning, ErrorBody) for code, meaning in ERRORS.items()},
        "x-callers": callers,
    }
    if body is not None:
        content = {"application/json": {"schema": json_schema(body, DEFINITIONS)}}
        extra["requestBody"] = {"required": True, "content": content}
    if not {"anyone", "signed"} & set(callers):
        extra["security"] = [{"bearer": []}]
    return extra


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document; made once per app."""
    if app.openapi_schema is None:
        page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = page.setdefault("components", {})
        components.setdefault("schemas", {}).update(DEFINITIONS)
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = page
    return app.openapi_schema


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS[name]}


def _query_parameters(query: type | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    found: dict[str, Any] = {}
    json_schema(query, found)
    schema = found[query.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema["required"], "schema": _scalar(kind, found)}
        for name, kind in schema["properties"].items()
    ]


def _scalar(kind: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is text or absent, never null."""
    arms = [arm for arm in kind.get("anyOf", [kind]) if arm.get("type") != "null"]
    return dict(arms[0])


def _response(description: str, answer: type | None) -> dict[str, Any]:
    if answer is None:
        return {"description": description}
    schema = json_schema(answer, DEFINITIONS)
    return {"description": description, "content": {"application/json": {"schema": schema}}}
