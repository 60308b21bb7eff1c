"""Sizes of the groups in which gradients are all-reduced."""

from __future__ import annotations

FIRST = 1 / 16
"""Size of the first group, relative to the others: a small one starts the network early."""


def group_limit(number: int, group_bytes: float) -> float:
    """Bytes at which group `number` is full; group 0 is sent first."""
    return group_bytes * (FIRST if number == 0 else 1.0)
