"""A prediction has two ends: what is assumed of a cluster is a range, not a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
U = TypeVar("U")
End = Literal["fast", "slow"]
"""All that is assumed at the end of its range that makes a step short, or at the one that makes it long."""


@dataclass(frozen=True)
class Ends(Generic[T]):
    """The same thing at both ends."""

    fast: T
    slow: T

    def at(self, end: End) -> T:
        """At one of them."""
        return self.fast if end == "fast" else self.slow

    def pair(self) -> tuple[T, T]:
        """Fast and slow."""
        return self.fast, self.slow

    def map(self, function: Callable[[T], U]) -> Ends[U]:
        """The values of `function` at both."""
        return Ends(function(self.fast), function(self.slow))


def both(function: Callable[[End], T]) -> Ends[T]:
    """What `function` gives for each end."""
    return Ends(function("fast"), function("slow"))


def same(value: T) -> Ends[T]:
    """Of something that is known."""
    return Ends(value, value)


def low_high(ends: Ends[float]) -> tuple[float, float]:
    """The smaller value first."""
    return min(ends.fast, ends.slow), max(ends.fast, ends.slow)


def between(ends: Ends[float], form: str, unit: str = "", factor: float = 1.0) -> str:
    """`low–high` and the unit, or one number where the two read the same.

    `form` is a format of Python for `factor` times the value, for example `.1f`.
    """
    low, high = (format(factor * value, form) for value in low_high(ends))
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def keys(name: str, ends: Ends[float] | None) -> dict[str, float | None]:
    """For JSON and CSV: `name_low` and `name_high`."""
    low, high = (None, None) if ends is None else low_high(ends)
    return {f"{name}_low": low, f"{name}_high": high}
