"""Who is calling: random user and runner tokens kept as hashes in files, and per-run sandbox tokens (JWT).

Tokens live in `tokens/<sha256>.json`, one file each, not in the database: a token can then be made while a server
holds the database and its only writer, and without one. A file appears whole (written aside, then renamed).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import pathlib
import re
import secrets
import threading
import time
from typing import Literal, cast

import jwt
from jwt.types import Options

from vm0.server.clock import Clock
from vm0.server.errors import ServerError

TokenKind = Literal["user", "runner"]
SANDBOX_PREFIX = "vm0_sandbox_"
PREFIXES: dict[TokenKind, str] = {"user": "vm0_user_", "runner": "vm0_runner_"}
USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a component of object keys
CACHE_S = 10.0  # a token whose file was removed is refused after this
CACHE_ENTRIES = 4096
MAX_TOKEN_LENGTH = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class UserPrincipal:
    user_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class RunnerPrincipal:
    """An operator's runner: serves the runs of every user."""


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxPrincipal:
    user_id: str
    run_id: str
    epoch: int


Principal = UserPrincipal | RunnerPrincipal | SandboxPrincipal


def create_token(state_dir: pathlib.Path | str, kind: TokenKind, user_id: str = "local") -> str:
    """Make a token for the server on `state_dir`, running or not, and return it; only its hash is kept."""
    if kind not in PREFIXES:
        raise ServerError(f"no token kind {kind!r}", hint="a token is for a `user` or a `runner`")
    if not USER_ID.fullmatch(user_id):
        raise ServerError(f"user id {user_id!r} must be 1 to 64 letters, digits, dots, hyphens or underscores")
    token = PREFIXES[kind] + secrets.token_urlsafe(32)
    folder = private_dir(pathlib.Path(state_dir)) / "tokens"
    private_dir(folder)
    record = {"kind": kind, "userId": user_id, "createdAtMs": time.time_ns() // 1_000_000}
    try:
        write_private(folder / f"{_digest(token)}.json", json.dumps(record).encode())
    except OSError as exc:
        raise ServerError(f"cannot store the token in {folder}: {exc.strerror}") from exc
    return token


def private_dir(path: pathlib.Path) -> pathlib.Path:
    """Make `path` a directory only we can enter; raises ServerError if something else is in the way."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as exc:
        raise ServerError(
            f"cannot use {path} as the state directory: {exc.strerror}",
            hint="choose another with --state-dir or VM0_SERVER_STATE_DIR",
        ) from exc
    return path


def write_private(path: pathlib.Path, data: bytes, *, replace: bool = True) -> None:
    """Write a 0600 file so that it is there whole and durable, or not at all; without `replace` an old one stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
        sync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_dir(path: pathlib.Path) -> None:
    """Make a rename in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class MasterKey:
    """The secret all others are derived from; `master.key` in the state directory, made at first use, 0600."""

    def __init__(self, state_dir: pathlib.Path) -> None:
        path = state_dir / "master.key"
        if not path.exists():
            write_private(path, secrets.token_hex(32).encode(), replace=False)
        try:
            self._key = bytes.fromhex(path.read_text("ascii").strip())
        except ValueError:
            self._key = b""
        if len(self._key) != 32:
            raise ServerError(
                f"{path} does not hold a key of 64 hexadecimal digits",
                hint="restore it from a backup; removing it makes a new key and ends the tokens of running runs",
            )

    def derive(self, label: str) -> bytes:
        """HKDF-SHA256 (RFC 5869) with an empty salt; one block, 32 bytes."""
        extracted = hmac.digest(bytes(32), self._key, "sha256")
        return hmac.digest(extracted, label.encode() + b"\x01", "sha256")


class TokenStore:
    """Tells who a bearer token belongs to. `authenticate` reads a small file on a miss: call it in a thread."""

    def __init__(self, state_dir: pathlib.Path, key: MasterKey, clock: Clock) -> None:
        self._folder = private_dir(state_dir / "tokens")
        self._jwt_key = key.derive("jwt-sandbox-signing")
        self._clock = clock
        self._cache: dict[str, tuple[Principal, float]] = {}
        self._lock = threading.Lock()

    def cached(self, token: str) -> Principal | None:
        """The principal if it is known without touching the disk."""
        if token.startswith(SANDBOX_PREFIX):
            return self._sandbox(token[len(SANDBOX_PREFIX) :])
        found = self._cache.get(_digest(token))
        return found[0] if found is not None and found[1] > time.monotonic() else None

    def authenticate(self, token: str) -> Principal | None:
        """The principal, or None for a token we did not give out or that has expired."""
        if len(token) > MAX_TOKEN_LENGTH:
            return None
        found = self.cached(token)
        if found is not None or not token.startswith(tuple(PREFIXES.values())):
            return found
        digest = _digest(token)
        try:
            record = json.loads((self._folder / f"{digest}.json").read_bytes())
        except FileNotFoundError:
            return None
        principal: Principal = (
            RunnerPrincipal() if record["kind"] == "runner" else UserPrincipal(cast(str, record["userId"]))
        )
        with self._lock:
            if len(self._cache) >= CACHE_ENTRIES:
                self._cache.clear()
            self._cache[digest] = (principal, time.monotonic() + CACHE_S)
        return principal

    def mint_sandbox(self, user_id: str, run_id: str, epoch: int, issued_ms: int, lifetime_s: int) -> str:
        """The token of one attempt; the same arguments give the same token, so a repeated claim can repeat it."""
        claims = {
            "userId": user_id,
            "runId": run_id,
            "scope": "sandbox",
            "epoch": epoch,
            "iat": issued_ms // 1000,
            "exp": issued_ms // 1000 + lifetime_s,
        }
        return SANDBOX_PREFIX + jwt.encode(claims, self._jwt_key, algorithm="HS256")

    def _sandbox(self, text: str) -> SandboxPrincipal | None:
        # The expiry is checked against our clock, which tests can turn; PyJWT only knows the system's.
        options: Options = {"verify_exp": False, "verify_iat": False, "require": ["exp", "iat"]}
        try:
            claims = jwt.decode(text, self._jwt_key, algorithms=["HS256"], options=options)
        except jwt.InvalidTokenError:
            return None
        if claims.get("scope") != "sandbox" or claims["exp"] * 1000 <= self._clock.now_ms():
            return None
        return SandboxPrincipal(claims["userId"], claims["runId"], claims["epoch"])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
