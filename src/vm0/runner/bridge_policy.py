"""What a guest may say to the API, as a table, and the check of each request against it. Pure.

Only exact paths are forwarded. Nothing is normalised: a target that another server might read differently (encoded
characters, dot segments, doubled slashes, another host) is refused, so there is one reading only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vm0.contracts.errors import ErrorCode

MAX_JSON_BYTES = 8 * 1024 * 1024
MAX_OBJECT_BYTES = 5 * 1024 * 1024 * 1024  # what S3 takes in one PUT
MAX_QUERY_BYTES = 4096
WEBHOOKS = "/api/webhooks/agent/"
WEBHOOK_ROUTES = frozenset(
    WEBHOOKS + name
    for name in (
        "events",
        "heartbeat",
        "telemetry",
        "checkpoints",
        "checkpoints/prepare-history",
        "storages/prepare",
        "storages/commit",
    )
)
OBJECTS = "/api/objects/"
_OBJECT_PATH = re.compile(r"/api/objects(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,255}){1,16}")
_QUERY = re.compile(r"[A-Za-z0-9._~%&=+:/,-]*")
# What passes; all else stays behind: credentials, cookies, hop-by-hop headers, who the request claims to come from.
REQUEST_HEADERS = ("Accept", "Content-Encoding", "Content-Type", "Range", "User-Agent")
ANSWER_HEADERS = ("Accept-Ranges", "Content-Encoding", "Content-Range", "Content-Type", "ETag", "Retry-After")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An allowed request: where it goes and what comes with it."""

    target: str  # path and query, to be sent exactly so
    add_token: bool
    max_body_bytes: int
    whole_body: bool  # read before it is forwarded: a slow guest occupies the bridge, never the server


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is not forwarded."""

    status: int
    code: ErrorCode
    message: str


def judge(method: str, raw_target: str) -> Route | Denial:
    """`raw_target`: the request target as it was on the wire."""
    path, mark, query = raw_target.partition("?")
    if not path.startswith("/"):
        return Denial(400, ErrorCode.BAD_REQUEST, "the request target must be a path")
    if path in WEBHOOK_ROUTES:
        if mark:
            return Denial(400, ErrorCode.BAD_REQUEST, "this route takes no query")
        if method != "POST":
            return Denial(405, ErrorCode.METHOD_NOT_ALLOWED, "this route takes POST")
        return Route(target=path, add_token=True, max_body_bytes=MAX_JSON_BYTES, whole_body=True)
    if path.startswith(OBJECTS):
        return _judge_object(method, path, query)
    if path.startswith(WEBHOOKS):
        return Denial(403, ErrorCode.FORBIDDEN, "a run may not call this route itself")
    return Denial(404, ErrorCode.NOT_FOUND, "there is no such route for a run")


def _judge_object(method: str, path: str, query: str) -> Route | Denial:
    if method not in ("GET", "PUT"):
        return Denial(405, ErrorCode.METHOD_NOT_ALLOWED, "objects take GET and PUT")
    if not _OBJECT_PATH.fullmatch(path):
        return Denial(400, ErrorCode.BAD_REQUEST, "an object's path is plain names joined by single slashes")
    if len(query) > MAX_QUERY_BYTES or not _QUERY.fullmatch(query):
        return Denial(400, ErrorCode.BAD_REQUEST, "the query is too long or holds illegal characters")
    if not re.search(r"(?:^|&)signature=[^&]", query):
        return Denial(403, ErrorCode.FORBIDDEN, "objects are reached by signed addresses only")
    limit = MAX_OBJECT_BYTES if method == "PUT" else 0
    return Route(target=f"{path}?{query}", add_token=False, max_body_bytes=limit, whole_body=False)


def passed_headers(names: Iterable[str], headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of `names` that are there; of a repeated one the first."""
    return {name: headers[name] for name in names if name in headers}
