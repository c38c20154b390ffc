"""The user's side of the HTTP API: one method per route, typed by the contracts; every failure is an `ApiError`."""

from __future__ import annotations

import asyncio
import os
import pathlib
import types
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import aiohttp

from vm0.cli.config import Secret
from vm0.cli.errors import CliError
from vm0.contracts.codec import ContractError, dumps, loads
from vm0.contracts.errors import ErrorBody, ErrorCode
from vm0.contracts.runner import RunnerList
from vm0.contracts.runs import EventPage, LogsView, RunList, RunRequest, RunStatus, RunView
from vm0.contracts.storages import (
    CommitAnswer,
    CommitRequest,
    PrepareAnswer,
    PrepareRequest,
    StorageType,
    Upload,
    VersionView,
)

T = TypeVar("T")
CONNECT_S = 10.0
ANSWER_S = 60.0  # one answer; a long poll adds its wait
HEALTH_S = 5.0  # a server that needs longer for nothing is not there
TRANSFER_IDLE_S = 60.0  # an archive may take long, but not stand still
ATTEMPTS = 3  # of what is safe to repeat
RETRY_DELAY_S = 0.5  # doubled each time
CHUNK_BYTES = 256 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
ID_PREFIX_LENGTH = 4  # an abbreviated run id has at least this many characters
PAGE_RUNS = 100
SEARCHED_PAGES = 50  # runs an abbreviated id is looked for in: 5000, newest first

HINTS = {
    ErrorCode.UNAUTHORIZED: "check VM0_TOKEN or --token-file: `vm0 token create --kind user` on its machine makes one",
    ErrorCode.FORBIDDEN: "this needs a user token: `vm0 token create --kind user`",
    ErrorCode.NOT_FOUND: "`vm0 runs ls` lists the runs this server has",
    ErrorCode.UNAVAILABLE: "try again later; if it stays, look at the server's disk and log",
    ErrorCode.INTERNAL_ERROR: "the server's log has the details",
}


class ApiError(CliError):
    """The server refused (`code` says why), or there was no usable answer (`code` None)."""

    def __init__(self, message: str, *, code: ErrorCode | None = None, hint: str = "", retry: bool = False) -> None:
        super().__init__(message, hint=hint or (HINTS.get(code, "") if code is not None else ""))
        self.code, self.retry = code, retry


class ApiClient:
    """Use as an async context manager. Reads, and writes that are safe to repeat, are tried three times."""

    def __init__(self, url: str, token: Secret | str) -> None:
        self.url, self._token = url.rstrip("/"), token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ApiClient:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: object, trace: types.TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def create_run(self, request: RunRequest) -> RunView:
        """Not repeated: a lost answer would make a second run."""
        return await self._call(RunView, "POST", "/api/runs", body=request, attempts=1)

    async def run(self, run_id: str) -> RunView:
        return await self._call(RunView, "GET", f"/api/runs/{_part(run_id)}")

    async def list_runs(
        self, *, limit: int = 20, status: RunStatus | None = None, cursor: str | None = None
    ) -> RunList:
        return await self._call(
            RunList, "GET", "/api/runs", limit=limit, status=status.value if status else None, cursor=cursor
        )

    async def cancel(self, run_id: str) -> RunView:
        return await self._call(RunView, "POST", f"/api/runs/{_part(run_id)}/cancel")

    async def events(self, run_id: str, *, after: int, wait_s: int = 0, limit: int = 500) -> EventPage:
        return await self._call(
            EventPage, "GET", f"/api/runs/{_part(run_id)}/events", after=after, limit=limit, wait=wait_s
        )

    async def logs(self, run_id: str) -> LogsView:
        return await self._call(LogsView, "GET", f"/api/runs/{_part(run_id)}/logs")

    async def prepare(self, request: PrepareRequest) -> PrepareAnswer:
        return await self._call(PrepareAnswer, "POST", "/api/storages/prepare", body=request)

    async def commit(self, request: CommitRequest) -> CommitAnswer:
        return await self._call(CommitAnswer, "POST", "/api/storages/commit", body=request)

    async def version(self, kind: StorageType, name: str, version_id: str = "head") -> VersionView:
        path = f"/api/storages/{kind.value}/{_part(name)}/versions/{_part(version_id)}"
        return await self._call(VersionView, "GET", path)

    async def runners(self) -> RunnerList:
        return await self._call(RunnerList, "GET", "/api/runners")

    async def healthy(self) -> bool:
        """Whether a vm0 server answers; never raises for a server that does not."""
        try:
            async with asyncio.timeout(HEALTH_S):
                await self._answer("GET", "/healthz", None, {}, 0.0)
        except (ApiError, TimeoutError):
            return False
        return True

    async def full_run_id(self, text: str) -> str:
        """The id that `text` is the unique beginning of; a whole id is taken as it is."""
        wanted = text.strip().lower()
        if len(wanted) == 36:
            return wanted
        if len(wanted) < ID_PREFIX_LENGTH:
            raise CliError(f"run id {text!r} is too short", hint=f"give at least {ID_PREFIX_LENGTH} characters of it")
        found: list[str] = []
        cursor: str | None = None
        for _ in range(SEARCHED_PAGES):
            page = await self.list_runs(limit=PAGE_RUNS, cursor=cursor)
            found += [run.run_id for run in page.runs if run.run_id.startswith(wanted)]
            cursor = page.next_cursor
            if cursor is None or len(found) > 1:
                break
        if not found:
            raise CliError(f"no run starts with {text!r}", hint=HINTS[ErrorCode.NOT_FOUND])
        if len(found) > 1:
            raise CliError(f"run id {text!r} is not unique: {found[0]}, {found[1]}, ...", hint="give more of it")
        return found[0]

    async def put_object(self, upload: Upload, source: pathlib.Path, content_type: str) -> None:
        """Send a file to a presigned address; the token is not sent along. Repeated as a whole when it breaks."""
        size = (await asyncio.to_thread(source.stat)).st_size
        headers = {"Content-Length": str(size), "Content-Type": content_type}
        await self._repeated(lambda: self._put(upload.presigned_url, source, headers), ATTEMPTS)

    async def get_object(self, presigned_url: str, target: pathlib.Path) -> None:
        """Fetch a presigned address into a file; the token is not sent along."""
        await self._repeated(lambda: self._get(presigned_url, target), ATTEMPTS)

    async def _put(self, url: str, source: pathlib.Path, headers: dict[str, str]) -> None:
        async with self._transfer("PUT", url, data=_chunks(source), headers=headers) as response:
            if response.status >= 300:
                raise _refused(response.status, await response.content.read(64 * 1024), "the upload")

    async def _get(self, url: str, target: pathlib.Path) -> None:
        async with self._transfer("GET", url) as response:
            if response.status != 200:
                raise _refused(response.status, await response.content.read(64 * 1024), "the download")
            with target.open("wb") as file:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)

    def _transfer(self, method: str, url: str, **arguments: Any) -> Any:
        limits = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=TRANSFER_IDLE_S)
        return self._open.request(method, urllib.parse.urljoin(f"{self.url}/", url), timeout=limits, **arguments)

    async def _call(
        self, answer: type[T], method: str, path: str, *, body: object = None, attempts: int = ATTEMPTS, **query: Any
    ) -> T:
        text = await self._repeated(
            lambda: self._answer(method, path, body, query, float(query.get("wait") or 0)), attempts
        )
        try:
            return loads(answer, text)
        except ContractError as exc:
            raise ApiError(
                f"{self.url} answered {method} {path} with something else: {exc}",
                hint="is it a vm0 server, of a version that fits this client?",
            ) from None

    async def _repeated(self, attempt: Any, attempts: int) -> Any:
        for number in range(attempts):
            try:
                try:
                    return await attempt()
                except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
                    raise _unreachable(self.url, exc) from exc
            except ApiError as exc:
                if not exc.retry or number == attempts - 1:
                    raise
            await asyncio.sleep(RETRY_DELAY_S * 2**number)
        raise AssertionError("the last attempt returns or raises")

    async def _answer(self, method: str, path: str, body: object, query: dict[str, Any], wait_s: float) -> bytes:
        parameters = {key: str(value) for key, value in query.items() if value is not None}
        try:
            async with self._open.request(
                method,
                f"{self.url}{path}",
                params=parameters,
                data=None if body is None else dumps(body),
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=ANSWER_S + wait_s, sock_connect=CONNECT_S),
                allow_redirects=False,
            ) as response:
                text = await _bounded(response)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            raise _unreachable(self.url, exc) from exc
        if response.status >= 300:
            raise _refused(response.status, text, f"{method} {path}")
        return text

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        return self._session


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        text += chunk
        if len(text) > MAX_ANSWER_BYTES:
            raise ApiError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes", hint="ask for less with --limit")
    return bytes(text)


async def _chunks(source: pathlib.Path) -> AsyncIterator[bytes]:
    with source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _part(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _unreachable(url: str, exc: BaseException) -> ApiError:
    if isinstance(exc, TimeoutError):
        why = "no answer in time"
    elif isinstance(exc, aiohttp.ClientConnectorError):
        code = exc.os_error.errno
        why = os.strerror(code).lower() if code is not None and code > 0 else str(exc.os_error)
    else:
        why = str(exc) or type(exc).__name__
    return ApiError(
        f"cannot reach the server at {url}: {why}",
        hint="is it running, and is --server right? Without --server, vm0 uses this machine",
        retry=True,
    )


def _refused(status: int, text: bytes, what: str) -> ApiError:
    try:
        error = loads(ErrorBody, text).error
    except ContractError:
        return ApiError(
            f"{what} was answered with HTTP {status}",
            hint="is it a vm0 server? A proxy in between may have answered",
            retry=status in (502, 503, 504),
        )
    return ApiError(error.message, code=error.code, retry=status in (429, 502, 503, 504))
