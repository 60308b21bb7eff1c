"""How large the groups are in which gradients are exchanged."""

from __future__ import annotations

FIRST = 1 / 16
"""Of a group's size, for the first: so early in the backward pass the network idles."""


def group_limit(number: int, group_bytes: float) -> float:
    """Bytes from which group `number`, 0 for the first to be released, takes no more gradients."""
    return group_bytes * (FIRST if number == 0 else 1.0)
