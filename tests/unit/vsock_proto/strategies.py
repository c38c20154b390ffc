"""Hypothesis strategies for every message, made from the field kinds in the registry: a new message is covered by
being registered, and a new kind of field fails here until it has a strategy."""

from __future__ import annotations

import itertools
import re
from typing import Any

from hypothesis import strategies as st

from vm0.vsock_proto import messages
from vm0.vsock_proto.codec import REGISTRY, Message

SMALL = 300  # generated sizes; the limits themselves are tested one by one
UNICODE = st.characters(exclude_categories=["Cs"])


def values_of(kind: str) -> st.SearchStrategy[Any]:
    """Values that a field of this kind can hold."""
    if match := re.fullmatch(r"u(\d+)", kind):
        return st.integers(0, 2 ** int(match[1]) - 1)
    if match := re.fullmatch(r"i(\d+)", kind):
        return st.integers(-(2 ** (int(match[1]) - 1)), 2 ** (int(match[1]) - 1) - 1)
    if match := re.fullmatch(r"(\d+) bytes", kind):
        return st.binary(min_size=int(match[1]), max_size=int(match[1]))
    if match := re.fullmatch(r"u\d+ \+ bytes ≤ (\d+)", kind):
        return st.binary(max_size=min(SMALL, int(match[1])))
    if match := re.fullmatch(r"u\d+ \+ UTF-8 ≤ (\d+)", kind):
        return st.text(UNICODE, max_size=min(SMALL, int(match[1])) // 4)
    if match := re.fullmatch(r"u\d+ \+ name ≤ (\d+)", kind):
        return st.binary(max_size=min(SMALL, int(match[1]))).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    if kind == "bytes to the end":
        return st.binary(max_size=SMALL)
    if match := re.fullmatch(r"u32 × \((.*)\) ≤ \d+", kind):
        items = [values_of(item) for item in match[1].split(", ")]
        return st.lists(items[0] if len(items) == 1 else st.tuples(*items), max_size=5).map(tuple)
    raise AssertionError(f"no strategy for a field of kind {kind!r}")


def messages_of(cls: type[Message]) -> st.SearchStrategy[Message]:
    return st.fixed_dictionaries({name: values_of(field.kind) for name, field in cls.FIELDS}).map(
        lambda values: cls(**values)
    )


def sent_by(role: str) -> st.SearchStrategy[Message]:
    """What `role` may send after *ready*."""
    kinds = [cls for cls in REGISTRY.values() if cls.SENDER in (role, "both") and cls is not messages.Ready]
    return st.sampled_from(kinds).flatmap(messages_of)


SEQS = st.integers(1, 2**32 - 1)
READY = messages_of(messages.Ready).map(
    lambda ready: messages.Ready(messages.VERSION, *(getattr(ready, name) for name, _ in ready.FIELDS[1:]))
)


def chunks_of(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """`data` cut at random places."""

    def cut(places: list[int]) -> list[bytes]:
        ends = sorted({0, len(data), *places})
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    return st.lists(st.integers(0, len(data)), max_size=20).map(cut)
