"""The server as the runner sees it: the claims, leases and reports of `contracts.runner`, over HTTP.

Every call has a time limit and ends in one of three errors. A lost answer is `ControlPlaneUnavailable`: whether the
call took effect is unknown, and every call may be repeated. Neither tokens nor signed addresses get into errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import urllib.parse
from typing import Any, BinaryIO, Protocol, TypeVar

import aiohttp

from vm0.contracts import codec
from vm0.contracts.errors import ErrorBody, ErrorCode
from vm0.contracts.runner import (
    CancellationsAnswer,
    CancellationsRequest,
    ClaimRequest,
    ExecutionContext,
    LeaseAnswer,
    LeaseRequest,
    PollAnswer,
    PollRequest,
    ReleaseAnswer,
    ReleaseRequest,
    RunnerHeartbeat,
)
from vm0.contracts.webhooks import CompleteAnswer, CompleteRequest, OkAnswer
from vm0.runner.config import Secret
from vm0.runner.errors import RunnerError

CALL_LIMIT_S = 10.0
CONNECT_LIMIT_S = 5.0
CLAIM_LIMIT_S = 20.0  # its answer may hold a 1 MiB prompt and a 0.5 MiB environment
STALL_LIMIT_S = 30.0  # of a download: time without a byte
MAX_ANSWER_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 256 * 1024
RETRIABLE = {408, 425, 429}  # and every 5xx

T = TypeVar("T")


class ControlPlaneUnavailable(RunnerError):
    """the server did not answer; try again"""


class LeaseLost(RunnerError):
    """the run belongs to somebody else now; stop at once and write nothing"""


class Refused(RunnerError):
    """the server said no, and would again"""

    def __init__(self, call: str, status: int, code: ErrorCode | None, message: str) -> None:
        name = code.value if code else "no error code"
        super().__init__(f"{call} was refused with {status} {name}: {message}", hint=REFUSED_HINTS.get(status, ""))
        self.status, self.code = status, code


REFUSED_HINTS = {
    401: "the runner token is not valid on this server; make one with `vm0 token create --kind runner`",
    403: "this runner token may not serve this group",
    404: "is server_url the address of a vm0 server?",
}


class ControlPlane(Protocol):
    """Raises ControlPlaneUnavailable, LeaseLost or Refused, and nothing else."""

    async def poll(self, request: PollRequest) -> PollAnswer: ...

    async def claim(self, run_id: str, request: ClaimRequest) -> ExecutionContext: ...

    async def renew(self, run_id: str, request: LeaseRequest) -> LeaseAnswer: ...

    async def cancellations(self, request: CancellationsRequest) -> CancellationsAnswer: ...

    async def release(self, run_id: str, request: ReleaseRequest) -> ReleaseAnswer: ...

    async def complete(self, request: CompleteRequest) -> CompleteAnswer: ...

    async def heartbeat(self, request: RunnerHeartbeat) -> None: ...

    async def download(self, url: str, out: BinaryIO, *, max_bytes: int) -> str:
        """Copy a stored object to `out` and return its SHA-256. `url` is signed, absolute or relative to the API."""
        ...


class HttpControlPlane:
    """Use as an async context manager: it owns the connections."""

    def __init__(self, server_url: str, token: Secret) -> None:
        self._base_url, self._token = server_url.rstrip("/"), token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpControlPlane:
        # No limit on connections: a long poll and every run's renewals must never wait for one another.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=CALL_LIMIT_S, sock_connect=CONNECT_LIMIT_S),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def poll(self, request: PollRequest) -> PollAnswer:
        limit_s = request.wait_seconds + CALL_LIMIT_S
        return await self._call("poll", "/api/runners/poll", request, PollAnswer, limit_s=limit_s)

    async def claim(self, run_id: str, request: ClaimRequest) -> ExecutionContext:
        return await self._call("claim", job_path(run_id, "claim"), request, ExecutionContext, limit_s=CLAIM_LIMIT_S)

    async def renew(self, run_id: str, request: LeaseRequest) -> LeaseAnswer:
        return await self._call("lease renewal", job_path(run_id, "lease"), request, LeaseAnswer)

    async def cancellations(self, request: CancellationsRequest) -> CancellationsAnswer:
        limit_s = request.wait_seconds + CALL_LIMIT_S
        path = "/api/runners/cancellations"
        return await self._call("cancellations", path, request, CancellationsAnswer, limit_s=limit_s)

    async def release(self, run_id: str, request: ReleaseRequest) -> ReleaseAnswer:
        return await self._call("release", job_path(run_id, "release"), request, ReleaseAnswer)

    async def complete(self, request: CompleteRequest) -> CompleteAnswer:
        return await self._call("completion", "/api/webhooks/agent/complete", request, CompleteAnswer)

    async def heartbeat(self, request: RunnerHeartbeat) -> None:
        await self._call("heartbeat", "/api/runners/heartbeat", request, OkAnswer)

    async def download(self, url: str, out: BinaryIO, *, max_bytes: int) -> str:
        call = f"download of {urllib.parse.urlsplit(url).path}"
        digest, size = hashlib.sha256(), 0
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S, sock_read=STALL_LIMIT_S)
        try:
            # The address is its own permission: the runner's token does not go there.
            target = self._base_url + url if url.startswith("/") else url
            async with self._open().get(target, timeout=limit, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise await _error(call, answer)
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    size += len(piece)
                    if size > max_bytes:
                        raise Refused(call, 200, None, f"it has more than {max_bytes} bytes")
                    digest.update(piece)
                    await asyncio.to_thread(out.write, piece)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            raise ControlPlaneUnavailable(f"{call} failed: {_cause(exc)}") from None
        return digest.hexdigest()

    async def _call(self, call: str, path: str, body: object, cls: type[T], *, limit_s: float = CALL_LIMIT_S) -> T:
        headers = {"Authorization": f"Bearer {self._token!s}", "Content-Type": "application/json"}
        limit = aiohttp.ClientTimeout(total=limit_s, sock_connect=CONNECT_LIMIT_S)
        url = self._base_url + path
        try:
            async with self._open().post(
                url, data=io.BytesIO(codec.dumps(body)), headers=headers, timeout=limit, allow_redirects=False
            ) as answer:
                if answer.status not in (200, 201):
                    raise await _error(call, answer)
                return codec.loads(cls, await _bounded_body(call, answer))
        except codec.ContractError as exc:
            raise ControlPlaneUnavailable(f"{call}: the answer does not match its contract: {exc}") from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            raise ControlPlaneUnavailable(f"{call} failed: {_cause(exc)}") from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise ControlPlaneUnavailable("the connection to the server is closed")
        return self._session


def job_path(run_id: str, action: str) -> str:
    return f"/api/runners/jobs/{urllib.parse.quote(run_id, safe='')}/{action}"


async def _bounded_body(call: str, answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_chunked(PIECE_BYTES):
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise ControlPlaneUnavailable(f"{call}: the answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


async def _error(call: str, answer: aiohttp.ClientResponse) -> RunnerError:
    """What an answer other than 200 means."""
    code, message = None, "the answer is not an error of this API"
    try:
        detail = codec.loads(ErrorBody, await _bounded_body(call, answer)).error
        code, message = detail.code, detail.message
    except codec.ContractError:
        pass
    if code is ErrorCode.LEASE_LOST:
        return LeaseLost(f"{call}: {message}")
    if answer.status >= 500 or answer.status in RETRIABLE:
        return ControlPlaneUnavailable(f"{call}: {answer.status}: {message}")
    return Refused(call, answer.status, code, message)


def _cause(exc: Any) -> str:
    """What to say of a failed connection: never its text as a whole, which may hold the signed address."""
    if isinstance(exc, TimeoutError):
        return "no answer within the limit"
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"cannot connect: {exc.os_error.strerror or type(exc.os_error).__name__}"
    return type(exc).__name__
