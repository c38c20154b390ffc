"""`/api/objects`: the bytes of archives, manifests and histories, for whoever has a signed address."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import AsyncIterator

from fastapi import Response
from fastapi.responses import StreamingResponse

from vm0.contracts.codec import limited
from vm0.contracts.webhooks import OkAnswer
from vm0.server.context import ServerContext
from vm0.server.errors import bad_request, not_found
from vm0.server.routing import Call, Caller, RouteSpec, contract_router, declare

router = contract_router("objects")
PATH = "/api/objects/{key:path}"
CHUNK_BYTES = 1024 * 1024  # a trip to a thread per chunk


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuery:
    """What the server put into the address; nothing to make up."""

    expires: int = limited(minimum=0)
    max: int = limited(minimum=0)
    signature: str


@declare(router, RouteSpec(method="GET", path=PATH, callers=(Caller.SIGNED,), query=SignedQuery))
async def fetch(call: Call[None]) -> Response:
    """The object's bytes."""
    key, context = call.path("key"), call.context
    context.signer.check("GET", key, dict(call.request.query_params))
    path = context.objects.path(key)
    try:
        file, size = await context.in_thread(_open, path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise not_found("object") from None
    return StreamingResponse(
        _pieces(context, file, size),
        media_type="application/octet-stream",
        headers={"content-length": str(size)},
    )


@declare(
    router,
    RouteSpec(method="PUT", path=PATH, callers=(Caller.SIGNED,), query=SignedQuery, answer=OkAnswer),
)
async def store(call: Call[None]) -> OkAnswer:
    """Store the body as this object: whole, or not at all."""
    key, context = call.path("key"), call.context
    limit = context.signer.check("PUT", key, dict(call.request.query_params))
    if "content-length" not in call.request.headers:
        raise bad_request("Content-Length", "is required")
    incoming = await context.in_thread(context.objects.start, key)
    try:
        buffer = bytearray()
        async for chunk in call.reader.chunks(limit):
            buffer += chunk
            if len(buffer) >= CHUNK_BYTES:
                await context.in_thread(incoming.write, buffer)
                buffer = bytearray()
        await context.in_thread(incoming.write, buffer)
        await context.in_thread(incoming.finish)
    finally:
        await context.in_thread(incoming.discard)
    return OkAnswer()


def _open(path: pathlib.Path) -> tuple[io.FileIO, int]:
    file = io.FileIO(path)  # refuses directories
    return file, os.fstat(file.fileno()).st_size


async def _pieces(context: ServerContext, file: io.FileIO, size: int) -> AsyncIterator[bytes]:
    """Objects never change in place, so the size stays right however long this takes."""
    with file:
        offset = 0
        while offset < size:
            data = await context.in_thread(os.pread, file.fileno(), min(CHUNK_BYTES, size - offset), offset)
            if not data:
                return
            offset += len(data)
            yield data
