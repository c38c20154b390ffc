"""The error body of the API, `{"error": {"code", "message"}}`, and its closed set of codes."""

from __future__ import annotations

import dataclasses
import enum


class ErrorCode(enum.Enum):
    BAD_REQUEST = "BAD_REQUEST"  # 400: the body or the address does not match its contract; the message has the path
    UNAUTHORIZED = "UNAUTHORIZED"  # 401: no token, an unknown one, or one for another run
    FORBIDDEN = "FORBIDDEN"  # 403: a known token that may not do this
    NOT_FOUND = "NOT_FOUND"  # 404
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"  # 405
    CONFLICT = "CONFLICT"  # 409: somebody else was first (claimed, already terminal)
    LEASE_LOST = "LEASE_LOST"  # 409: the caller's epoch is not the run's any more; stop at once, write nothing
    S3_FILES_MISSING = "S3_FILES_MISSING"  # 409: a committed version whose objects are gone
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"  # 413
    INTERNAL_ERROR = "INTERNAL_ERROR"  # 500: our bug
    UNAVAILABLE = "UNAVAILABLE"  # 503: storage full or closing; try again later


STATUS = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.CONFLICT: 409,
    ErrorCode.LEASE_LOST: 409,
    ErrorCode.S3_FILES_MISSING: 409,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.INTERNAL_ERROR: 500,
    ErrorCode.UNAVAILABLE: 503,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetail:
    """What went wrong, for a program (`code`) and for a person (`message`)."""

    code: ErrorCode
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    """The body of every answer that is not 2xx."""

    error: ErrorDetail
