"""Secrets are replaced by `***` in everything that leaves the guest, in whatever form they were written.

Every variant of every secret goes into one alternation, longest first, so that a short secret inside a long one
never leaves the rest of the long one behind; matches that overlap are masked as one. Building fails closed: without
a masker nothing may be sent.
"""

from __future__ import annotations

import base64
import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

REPLACEMENT = "***"
MIN_SECRET_BYTES = 5  # shorter ones hit too much innocent text
MAX_NESTING = 200  # of JSON that is masked; deeper parts are replaced as a whole
# encodeURIComponent leaves these alone, RFC 3986 only letters, digits and `-._~`
_JS_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")
_RFC_SAFE = _JS_SAFE - frozenset(b"!*'()")


class MaskingError(Exception):
    """the secrets of this run cannot be masked"""


def percent_encoded(data: bytes, safe: frozenset[int], digits: str) -> str:
    """Percent-encoding with upper (`02X`) or lower (`02x`) case escapes."""
    return "".join(chr(byte) if byte in safe else f"%{byte:{digits}}" for byte in data)


def base64_variants(data: bytes) -> Iterator[str]:
    """`data` in base64, alone and as a part of something longer: the characters that only `data` decides.

    Base64 encodes three bytes at a time, so there are three forms, one for each position modulo 3.
    """
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        alone = encode(data).decode("ascii")
        yield alone
        yield alone.rstrip("=")
        for shift in range(3):
            encoded = encode(bytes(shift) + data).decode("ascii")
            first = (shift * 8 + 5) // 6  # characters that the bytes before take part in
            last = (shift + len(data)) * 8 // 6  # complete characters
            yield encoded[first:last]


def json_escaped(text: str) -> Iterator[str]:
    for ascii_only in (True, False):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def variants(secret: str) -> set[str]:
    """Every form in which `secret` is recognised; empty if it is too short to be masked."""
    raw = secret.encode("utf-8", "surrogatepass")
    if len(raw) < MIN_SECRET_BYTES:
        return set()
    found = {secret, *base64_variants(raw)}
    for digits in ("02X", "02x"):
        for safe in (_JS_SAFE, _RFC_SAFE):
            encoded = percent_encoded(raw, safe, digits)
            found |= {encoded, encoded.replace("%20", "+")}
    for line in (part for ending in ("\n", "\r\n") for part in secret.split(ending)):
        for text in (line, line.strip()):
            if len(text.encode("utf-8", "surrogatepass")) >= MIN_SECRET_BYTES:
                found.add(text)
    for _ in range(2):  # JSON, and JSON inside a JSON string
        found |= {escaped for text in tuple(found) for escaped in json_escaped(text)}
    return found


def _alternation(ordered: list[str]) -> str:
    """A pattern of all forms, grouped by their first two characters: one flat list of thousands is slow to search.

    Forms of one group keep their order, longest first. Every form has two characters: five bytes are at least two.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for form in ordered:
        groups.setdefault(form[0], {}).setdefault(form[1], []).append(re.escape(form[2:]))
    branches = []
    for first, inner in groups.items():
        nested = "|".join(f"{re.escape(second)}(?:{'|'.join(rest)})" for second, rest in inner.items())
        branches.append(f"{re.escape(first)}(?:{nested})")
    return "|".join(branches)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Masker:
    """Masks the secrets of one run. Immutable, thread-safe.

    `skipped` says how many secrets were too short. `vocabulary`: words that are never masked where they stand as a
    key or as the value of a `type` or `subtype` key, because the protocol, not the user, put them there.
    Raises MaskingError if a secret is not text or the pattern cannot be built.
    """

    def __init__(self, secrets: Iterable[str], vocabulary: Iterable[str] = ()) -> None:
        found: set[str] = set()
        self.skipped = 0
        try:
            for secret in secrets:
                forms = variants(secret)
                self.skipped += bool(secret) and not forms
                found |= forms
            ordered = sorted(found, key=lambda form: (-len(form), form))
            alternation = _alternation(ordered)
            self._pattern = re.compile(alternation) if ordered else None
            self._anywhere = re.compile(f"(?=({alternation}))") if ordered else None
        except (AttributeError, TypeError, ValueError, re.error, RecursionError, MemoryError) as exc:
            raise MaskingError(f"the masking pattern cannot be built: {type(exc).__name__}") from None
        self._vocabulary = frozenset(vocabulary)
        self.longest = len(ordered[0]) if ordered else 0

    def contains_secret(self, text: str) -> bool:
        return self._pattern is not None and self._pattern.search(text) is not None

    def matches(self, text: str) -> Iterator[re.Match[str]]:
        """The longest match at every position where one starts, overlapping ones too; group 1 is the match."""
        if self._pattern is None or self._anywhere is None:
            return iter(())
        first = self._pattern.search(text)
        return iter(()) if first is None else self._anywhere.finditer(text, first.start())

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The parts of `text` to hide, in order, overlapping ones merged."""
        merged: list[tuple[int, int]] = []
        for match in self.matches(text):
            start, end = match.span(1)
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def mask_text(self, text: str) -> str:
        parts, position = [], 0
        for start, end in self.spans(text):
            parts += [text[position:start], REPLACEMENT]
            position = end
        return text if not parts else "".join(parts) + text[position:]

    def mask_json(self, value: Any) -> Any:
        """`value` with every string masked, keys too; keys that become equal get `#2`, `#3`, …"""
        return value if self._pattern is None else self._mask(value, 0)

    def dumps(self, value: Any) -> str:
        """Compact JSON of the masked `value`, characters unescaped; one search if there is nothing to mask.

        Raises ValueError for infinite numbers, RecursionError for nesting beyond what `json` can write.
        """
        text = _compact(value)
        return _compact(self._mask(value, 0)) if self.contains_secret(text) else text

    def _mask(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.mask_text(value)
        if depth > MAX_NESTING and isinstance(value, (dict, list)):
            return REPLACEMENT
        if isinstance(value, list):
            return [self._mask(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return self._mask_object(value, depth)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return REPLACEMENT if self._is_secret_number(value) else value
        return value

    def _mask_object(self, value: dict[str, Any], depth: int) -> dict[str, Any]:
        masked: dict[str, Any] = {}
        for key, item in value.items():
            name = key if key in self._vocabulary else self.mask_text(key)
            unique, count = name, 1
            while unique in masked:
                count += 1
                unique = f"{name}#{count}"
            is_word = key in ("type", "subtype") and isinstance(item, str) and item in self._vocabulary
            masked[unique] = item if is_word else self._mask(item, depth + 1)
        return masked

    def _is_secret_number(self, value: float) -> bool:
        text = json.dumps(value)
        return self.spans(text) == [(0, len(text))]


class StreamMasker:
    """Masks a text that comes in pieces, so that a secret split between two pieces is masked as a whole.

    What `feed` and `finish` return together equals `mask_text` of all pieces together. At most `masker.longest`
    characters are held back.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._tail = ""
        self._covered = 0  # characters at the start of the tail that belong to a secret already replaced

    def copy(self) -> StreamMasker:
        """The same state, so that a piece can be tried again after a failed delivery."""
        twin = StreamMasker(self._masker)
        twin._tail, twin._covered = self._tail, self._covered
        return twin

    def feed(self, piece: str) -> str:
        text = self._tail + piece
        # a match that starts before `settled` is known to its end: the longest secret fits
        return self._emit(text, max(0, len(text) - max(0, self._masker.longest - 1)))

    def finish(self) -> str:
        return self._emit(self._tail, len(self._tail))

    def _emit(self, text: str, settled: int) -> str:
        parts: list[str] = []
        position, masked_to = 0, self._covered
        for start, end in self._starts(text, settled):
            if start < masked_to:  # overlaps what is masked already
                masked_to = max(masked_to, end)
                continue
            parts += [text[max(position, min(masked_to, settled)) : start], REPLACEMENT]
            position, masked_to = start, end
        parts.append(text[min(max(position, masked_to), settled) : settled])
        self._tail = text[settled:]
        self._covered = max(0, masked_to - settled)
        return "".join(parts)

    def _starts(self, text: str, settled: int) -> Iterator[tuple[int, int]]:
        for match in self._masker.matches(text):
            if match.start() >= settled:
                return
            yield match.span(1)
