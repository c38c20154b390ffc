"""Which events of a run may be shown: the prefix without a gap."""

from __future__ import annotations

from collections.abc import Iterable


def contiguous_after(contiguous: int, stored: Iterable[int]) -> int:
    """The new length of the gapless prefix, given the stored sequence numbers from `contiguous` on, ascending."""
    for number in stored:
        if number != contiguous:
            break
        contiguous += 1
    return contiguous


def first_missing(contiguous: int, highest: int, announced: int | None) -> int | None:
    """The first number that is known to exist and is not stored: below a stored one, or below the sender's count.

    `highest` is the highest stored number (-1: none), `announced` the count a finished run's agent said it sent.
    """
    expected = max(highest + 1, announced or 0)
    return contiguous if expected > contiguous else None
