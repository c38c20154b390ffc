"""The routes a guest uses, as a real HTTP server over TCP or a Unix socket, with faults on demand.

It checks every body against the contracts, keeps all bytes it ever received, stores objects, and computes version ids
as the server does. A fault is a function that sees each request first and may answer it, delay it or cut it off.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from vm0.contracts import codec, storages, webhooks

SIGNATURE = "signature=sEcReTsIgNaTuRe"
STORAGE_ID = "storage-1"


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """One request as it came."""

    method: str
    path: str  # without the query
    query: str
    body: bytes
    at: float  # monotonic
    content_type: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: close the connection without an answer."""

    status: int
    body: bytes = b""


Fault = Callable[[Received], Answer | None]


def error(status: int, code: str, message: str = "injected") -> Answer:
    return Answer(status, json.dumps({"error": {"code": code, "message": message}}).encode())


class FakeApi:
    """Start with `with FakeApi() as api:`; `api.url` is the base address."""

    def __init__(self, unix_path: str | None = None) -> None:
        self.received: list[Received] = []
        self.objects: dict[str, bytes] = {}
        self.events: dict[int, dict[str, Any]] = {}
        self.versions: dict[str, storages.CommitRequest] = {}
        self.checkpoints: list[webhooks.CheckpointRequest] = []
        self.contract_errors: list[str] = []
        self.faults: list[Fault] = []
        self._changed = threading.Condition()
        self._unix_path = unix_path
        self._server = _server(self, unix_path)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-api")

    @property
    def url(self) -> str:
        if self._unix_path is not None:
            return f"unix:{self._unix_path}"
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __enter__(self) -> FakeApi:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._unix_path is not None and os.path.exists(self._unix_path):
            os.unlink(self._unix_path)

    def requests(self, path_end: str) -> list[Received]:
        with self._changed:
            return [request for request in self.received if request.path.endswith(path_end)]

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Wait until a condition on what was received holds; it is checked after every request."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise AssertionError(f"not within {timeout_s} s; received {[r.path for r in self.received]}")

    def all_bytes(self) -> bytes:
        """Everything that ever left the guest towards us."""
        return b"\n".join(request.path.encode() + request.body for request in self.received)

    def system_log(self) -> str:
        return "".join(request.json.get("systemLog", "") for request in self.requests("/telemetry"))

    def handle(self, request: Received) -> Answer:
        with self._changed:
            self.received.append(request)
        answer = next((found for fault in list(self.faults) if (found := fault(request)) is not None), None)
        if answer is None:
            try:
                with self._changed:
                    answer = self._route(request)
            except codec.ContractError as exc:
                with self._changed:
                    self.contract_errors.append(f"{request.path}: {exc}")
                answer = error(400, "BAD_REQUEST", str(exc))
        with self._changed:
            self._changed.notify_all()
        return answer

    def _route(self, request: Received) -> Answer:
        if request.path.startswith("/api/objects/"):
            return self._object(request)
        route = {
            "/api/webhooks/agent/events": self._events,
            "/api/webhooks/agent/heartbeat": self._heartbeat,
            "/api/webhooks/agent/telemetry": self._telemetry,
            "/api/webhooks/agent/storages/prepare": self._prepare,
            "/api/webhooks/agent/storages/commit": self._commit,
            "/api/webhooks/agent/checkpoints/prepare-history": self._prepare_history,
            "/api/webhooks/agent/checkpoints": self._checkpoint,
        }.get(request.path)
        if route is None or request.method != "POST":
            return error(404, "NOT_FOUND", request.path)
        return Answer(200, codec.dumps(route(request)))

    def _object(self, request: Received) -> Answer:
        key = request.path.removeprefix("/api/objects/")
        if request.query != SIGNATURE:
            return error(403, "FORBIDDEN", f"bad signature {request.query}")
        if request.method == "PUT":
            self.objects[key] = request.body
            return Answer(200)
        if key in self.objects:
            return Answer(200, self.objects[key])
        return error(404, "NOT_FOUND", key)

    def _events(self, request: Received) -> object:
        body = codec.loads(webhooks.EventsRequest, request.body)
        for event in body.events:
            self.events.setdefault(event["sequenceNumber"], event)
        numbers = [event["sequenceNumber"] for event in body.events]
        return webhooks.EventsAnswer(received=len(numbers), first_sequence=min(numbers), last_sequence=max(numbers))

    def _heartbeat(self, request: Received) -> object:
        codec.loads(webhooks.HeartbeatRequest, request.body)
        return webhooks.OkAnswer()

    def _telemetry(self, request: Received) -> object:
        body = codec.loads(webhooks.TelemetryRequest, request.body)
        return webhooks.TelemetryAnswer(success=True, id=body.run_id)

    def _prepare(self, request: Received) -> object:
        body = codec.loads(storages.PrepareRequest, request.body)
        version = storages.version_id(STORAGE_ID, body.files)
        if version in self.versions:
            return storages.PrepareAnswer(version_id=version, existing=True)
        return storages.PrepareAnswer(
            version_id=version,
            existing=False,
            uploads=storages.Uploads(
                archive=_upload(f"{body.storage_name}/{version}/archive.tar.gz"),
                manifest=_upload(f"{body.storage_name}/{version}/manifest.json"),
            ),
        )

    def _commit(self, request: Received) -> object:
        body = codec.loads(storages.CommitRequest, request.body)
        prefix = f"{body.storage_name}/{body.version_id}"
        if body.version_id != storages.version_id(STORAGE_ID, body.files):
            raise codec.ContractError("versionId", "does not match the files")
        if f"{prefix}/manifest.json" not in self.objects or (
            body.files and f"{prefix}/archive.tar.gz" not in self.objects
        ):
            raise codec.ContractError("versionId", "its objects are not uploaded")
        self.versions[body.version_id] = body
        return storages.CommitAnswer(
            success=True,
            version_id=body.version_id,
            storage_name=body.storage_name,
            size=sum(file.size for file in body.files),
            file_count=len(body.files),
        )

    def _prepare_history(self, request: Received) -> object:
        body = codec.loads(webhooks.PrepareHistoryRequest, request.body)
        key = f"blobs/{body.hash}.blob"
        if key in self.objects:
            return webhooks.PrepareHistoryAnswer(existing=True)
        return webhooks.PrepareHistoryAnswer(existing=False, presigned_url=_upload(key).presigned_url)

    def _checkpoint(self, request: Received) -> object:
        body = codec.loads(webhooks.CheckpointRequest, request.body)
        digest = body.cli_agent_session_history_hash
        if digest is not None and hashlib.sha256(self.objects[f"blobs/{digest}.blob"]).hexdigest() != digest:
            raise codec.ContractError("cliAgentSessionHistoryHash", "is not that of the stored history")
        self.checkpoints.append(body)
        return webhooks.CheckpointAnswer(checkpoint_id=str(uuid.uuid4()))


def _upload(key: str) -> storages.Upload:
    return storages.Upload(key=key, presigned_url=f"/api/objects/{key}?{SIGNATURE}")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per answer
    api: FakeApi

    def handle_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:  # the sender went away in the middle: like the real server, keep nothing of it
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        content_type = self.headers.get("Content-Type", "")
        answer = self.api.handle(Received(self.command, path, query, body, time.monotonic(), content_type))
        if answer.status == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        return

    def address_string(self) -> str:
        return "client"


class _TcpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a guest that was killed


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


def _server(api: FakeApi, unix_path: str | None) -> socketserver.TCPServer:
    handler = type("Handler", (_Handler,), {"api": api})
    if unix_path is None:
        return _TcpServer(("127.0.0.1", 0), handler)
    return _UnixServer(unix_path, handler)
