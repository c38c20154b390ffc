"""What leaves the runner as text about a run: bounded, valid, without secret values and without signed addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
SHORTEST_SECRET = 5  # masking shorter values would hide ordinary words; the guest has the same limit
_QUERY = re.compile(r"(https?://[^\s?\"'<>]*|/api/objects/[^\s?\"'<>]*)\?[^\s\"'<>]*")


class Redactor:
    """Longest secret first, so that one that contains another goes as a whole."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        found = {line for secret in secrets for line in (secret, *secret.splitlines())}
        self._secrets = sorted((s for s in found if len(s.encode()) >= SHORTEST_SECRET), key=len, reverse=True)

    def __call__(self, text: str, max_bytes: int = 4096) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return bounded_text(_QUERY.sub(r"\1?…", text), max_bytes)


def bounded_text(text: str, max_bytes: int) -> str:
    """Text as the contracts take it: no NUL, no lone surrogates, at most `max_bytes` of UTF-8, its end kept."""
    data = text.replace("\0", "�").encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return data.decode()
    return "…" + data[len(data) - max_bytes + 3 :].decode("utf-8", "ignore")
