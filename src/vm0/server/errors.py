"""What can go wrong: `ApiError` is an answer to a caller, `ServerError` a server that could not start.

`api_error_for` maps failures of the storage below us (disk full, I/O error, corrupt page) to UNAVAILABLE, because
the caller did nothing wrong and may succeed later.
"""

from __future__ import annotations

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError

from vm0.contracts.codec import ContractError
from vm0.contracts.errors import STATUS, ErrorCode

#: Primary result codes of SQLite (the low byte of the extended code) that say "not now" rather than "our bug".
UNAVAILABLE_SQLITE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_NOMEM,
}
UNAVAILABLE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}


class ServerError(Exception):
    """the server could not start"""

    def __init__(self, message: str | None = None, *, hint: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.hint = hint


class ApiError(Exception):
    """An answer that is not 2xx; the only exception routes and queries raise on purpose."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def status(self) -> int:
        return STATUS[self.code]


def bad_request(path: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.BAD_REQUEST, f"{path}: {reason}" if path else reason)


def not_found(what: str) -> ApiError:
    return ApiError(ErrorCode.NOT_FOUND, f"{what} not found")


def lease_lost(why: str) -> ApiError:
    return ApiError(ErrorCode.LEASE_LOST, f"{why}; stop this attempt and write nothing more")


def storage_failure(exc: BaseException) -> str | None:
    """What to tell the caller if `exc` is the storage's failure rather than ours, else None."""
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in UNAVAILABLE_SQLITE_CODES:
            full = code == sqlite3.SQLITE_FULL
            return "the server's disk is full" if full else "the server's database is not usable now"
    if isinstance(original, OSError) and original.errno in UNAVAILABLE_ERRNOS:
        full = original.errno in (errno.ENOSPC, errno.EDQUOT)
        return "the server's disk is full" if full else "the server's storage is not usable now"
    return None


def api_error_for(exc: Exception) -> ApiError | None:
    """The answer for an exception, or None if it is a bug of ours."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, ContractError):
        return ApiError(ErrorCode.BAD_REQUEST, str(exc))
    reason = storage_failure(exc)
    if reason is not None:
        return ApiError(ErrorCode.UNAVAILABLE, f"{reason}; try again later")
    return None
