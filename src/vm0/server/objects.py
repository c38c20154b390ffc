"""The object store: files under one directory, each there whole and durable or not at all, and signed URLs to them.

A key is `part/part/...`; it is checked before it becomes a path, so none can lead out of the root. An archive is
uploaded under `_uploads/` and moved to its final key at commit: a signed upload URL, which stays valid for an hour,
can never change a version that somebody may be using. Blobs are named by their SHA-256, which is checked instead.
All methods do disk I/O; the server calls them in threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import pathlib
import re
import secrets
import time
import urllib.parse

from vm0.contracts.errors import ErrorCode
from vm0.contracts.storages import StorageType
from vm0.server.clock import Clock
from vm0.server.errors import ApiError, bad_request
from vm0.server.tokens import private_dir, sync_dir

KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,191}")
BLOB_KEY = re.compile(r"(?:.*/)?blobs/([0-9a-f]{64})\.blob")
MAX_KEY_LENGTH = 1024
STALE_S = 24 * 3600.0  # uploads that were never committed and parts of broken ones go after this
ROUTE = "/api/objects/"
UPLOADS = "_uploads"  # no user id starts with an underscore


def version_key(user_id: str, storage_type: StorageType, name: str, version_id: str, file: str) -> str:
    """`file` is `archive.tar.gz` or `manifest.json`."""
    return f"{user_id}/{storage_type.value}/{name}/{version_id}/{file}"


def upload_key(final_key: str) -> str:
    return f"{UPLOADS}/{final_key}"


def blob_key(user_id: str, sha256: str) -> str:
    """Per user: whoever only knows the hash of somebody else's history must not get it by naming it."""
    return f"{user_id}/blobs/{sha256}.blob"


class UrlSigner:
    """Makes and checks path-absolute URLs: HMAC-SHA256 over method, key, expiry and size limit."""

    def __init__(self, key: bytes, clock: Clock, ttl_s: int) -> None:
        self._key, self._clock, self._ttl_s = key, clock, ttl_s

    def sign(self, method: str, key: str, max_bytes: int = 0) -> str:
        expires = self._clock.now_ms() // 1000 + self._ttl_s
        signature = self._signature(method, key, expires, max_bytes)
        return f"{ROUTE}{urllib.parse.quote(key)}?expires={expires}&max={max_bytes}&signature={signature}"

    def check(self, method: str, key: str, query: dict[str, str]) -> int:
        """The size limit of a valid URL; raises ApiError for any other."""
        try:
            expires, max_bytes = _decimal(query["expires"]), _decimal(query["max"])
            given = query["signature"]
        except (KeyError, ValueError):
            raise ApiError(
                ErrorCode.FORBIDDEN, "this address needs a signature (`expires`, `max`, `signature`)"
            ) from None
        wanted = self._signature(method, key, expires, max_bytes)
        if not hmac.compare_digest(wanted.encode(), given.encode("utf-8", "surrogateescape")):
            raise ApiError(ErrorCode.FORBIDDEN, "the signature does not fit this address and method")
        if expires * 1000 <= self._clock.now_ms():
            raise ApiError(ErrorCode.FORBIDDEN, "the signed address has expired; ask for a new one")
        return max_bytes

    def _signature(self, method: str, key: str, expires: int, max_bytes: int) -> str:
        text = f"{method}\n{key}\n{expires}\n{max_bytes}"
        return hmac.new(self._key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


class ObjectStore:
    """Local files. Temporary names live in `.incoming`, on the same file system."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = private_dir(root)
        self._incoming = private_dir(root / ".incoming")

    def path(self, key: str) -> pathlib.Path:
        """Where an object is; raises ApiError for a key that is not plain names joined by slashes."""
        parts = key.split("/")
        if len(key) > MAX_KEY_LENGTH or not all(KEY_PART.fullmatch(part) for part in parts):
            raise bad_request("key", "must be plain names joined by slashes")
        return self._root.joinpath(*parts)

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def start(self, key: str) -> IncomingObject:
        """Begin an upload; call it with `finish` or `discard` at the end, whatever happens."""
        path = self.path(key)
        match = BLOB_KEY.fullmatch(key)
        temporary = self._incoming / secrets.token_hex(16)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return IncomingObject(self, path, temporary, descriptor, match[1] if match else None)

    def publish(self, uploaded_key: str, final_key: str) -> None:
        """Move a finished upload to its final key, if there is one; durable on return, repeatable."""
        source, target = self.path(uploaded_key), self.path(final_key)
        self.make_folder(target.parent)
        try:
            os.replace(source, target)
        except FileNotFoundError:
            return
        sync_dir(target.parent)

    def make_folder(self, folder: pathlib.Path) -> None:
        """Make `folder` below the root; each new level is synced into the one above it."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            sync_dir(path.parent)

    def remove_stale(self) -> int:
        """At a start: remove parts of broken uploads and old uploads nobody committed; returns how many."""
        removed = 0
        for path in self._incoming.iterdir():
            path.unlink(missing_ok=True)
            removed += 1
        oldest = time.time() - STALE_S
        for folder, _, files in os.walk(self._root / UPLOADS, topdown=False):
            for name in files:
                path = pathlib.Path(folder, name)
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
                    removed += 1
            if not os.listdir(folder):
                os.rmdir(folder)
        return removed


@dataclasses.dataclass(slots=True)
class IncomingObject:
    """An upload under way. Its bytes are in a temporary file until `finish`."""

    store: ObjectStore
    path: pathlib.Path
    temporary: pathlib.Path
    descriptor: int
    sha256: str | None
    size: int = 0
    _hash: hashlib._Hash = dataclasses.field(default_factory=hashlib.sha256)

    def write(self, data: bytes | bytearray) -> None:
        if self.sha256 is not None:
            self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]
        self.size += len(data)

    def finish(self) -> None:
        """Check, sync and rename into place; raises ApiError if a blob is not what its name says."""
        if self.sha256 is not None and self._hash.hexdigest() != self.sha256:
            raise bad_request("body", f"its SHA-256 is {self._hash.hexdigest()}, not the one in its address")
        os.fsync(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = -1
        self.store.make_folder(self.path.parent)
        os.replace(self.temporary, self.path)
        sync_dir(self.path.parent)

    def discard(self) -> None:
        """Remove what is left of it; nothing after `finish`."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.temporary.unlink(missing_ok=True)


def _decimal(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)
