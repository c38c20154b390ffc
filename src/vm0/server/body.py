"""The body of a request: read within a size and a time, and read to its end before an early answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from vm0.contracts.errors import ErrorCode
from vm0.server.errors import ApiError, bad_request

CHUNK_TIMEOUT_S = 60.0  # a sender that is silent for this long is gone
BODY_TIMEOUT_S = 120.0  # for a whole JSON body; large ones are few at a time, so nobody may sit on a place
DRAIN_BYTES = 64 * 1024 * 1024  # unread body that is swallowed so that an early error answer arrives
DRAIN_TIMEOUT_S = 10.0


class ClientGone(Exception):
    """the client closed the connection before its request was complete"""


class BodyReader:
    """Reads one request's body once. `announced` is its Content-Length, -1 when there is none."""

    def __init__(self, request: Request) -> None:
        self._request = request
        headers = request.headers
        length = headers.get("content-length", "")
        chunked = "transfer-encoding" in headers
        self.announced = int(length) if length.isdecimal() else (-1 if chunked else 0)
        self._ended = self.announced == 0

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """The body piece by piece; raises ApiError beyond `limit` bytes, ClientGone when it breaks off."""
        if self.announced > limit:
            raise _too_large(limit)
        size = 0
        while not self._ended:
            data = await self._next()
            size += len(data)
            if size > limit:
                raise _too_large(limit)
            if data:
                yield data

    async def whole(self, limit: int) -> bytes:
        """All of it, for JSON; raises ApiError if that takes longer than `BODY_TIMEOUT_S`."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return b"".join([chunk async for chunk in self.chunks(limit)])
        except TimeoutError:
            raise bad_request("body", f"did not arrive within {BODY_TIMEOUT_S:g} s") from None

    async def drain(self) -> None:
        """Swallow what was not read, within limits."""
        left = DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while not self._ended and left > 0:
                    left -= len(await self._next())
        except (TimeoutError, ClientGone, ApiError):
            self._ended = True

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                message = await self._request.receive()
        except TimeoutError:
            self._ended = True
            raise bad_request("body", f"nothing arrived for {CHUNK_TIMEOUT_S:g} s") from None
        if message["type"] == "http.disconnect":
            self._ended = True
            raise ClientGone
        self._ended = not message.get("more_body", False)
        data: bytes = message.get("body", b"")
        return data


def _too_large(limit: int) -> ApiError:
    return ApiError(ErrorCode.PAYLOAD_TOO_LARGE, f"the body is larger than the limit of {limit} bytes")
