"""Counts of words and lines."""

from __future__ import annotations

import re
from collections import Counter

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def most_common(text: str, count: int) -> list[tuple[str, int]]:
    """The `count` most frequent words; words of the same frequency in alphabetical order."""
    found = Counter(words(text))
    return sorted(found.items(), key=lambda item: (item[1], item[0]))[:count]


def longest_line(text: str) -> str:
    """The longest line without its line break; the first one of several, "" for an empty text."""
    return max(text.splitlines(), key=len, default="")
