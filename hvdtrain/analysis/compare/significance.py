"""Whether the means of two groups differ by more than chance: Welch's test, the paired test, Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
_TINY = 1e-12
"""A spread that is rounding, in parts of the largest value."""


@dataclass(frozen=True)
class TTest:
    """A two-sided t test of the difference of two means, a − b."""

    method: Literal["Welch", "paired"]
    difference: float
    low: float
    """Of the 95 % confidence interval of the difference, as `high`."""
    high: float
    freedom: float
    """Degrees of freedom."""
    p: float


def welch(a: Sequence[float], b: Sequence[float]) -> TTest | None:
    """Of independent values, at least two each, with variances of their own. None: neither has a spread.

    Source: Welch 1947, Biometrika 34; degrees of freedom by Satterthwaite 1946, Biometrics Bulletin 2.
    """
    if _constant(a) and _constant(b):
        return None
    errors = [statistics.stdev(values) / math.sqrt(len(values)) for values in (a, b)]
    error = math.hypot(*errors)
    share_a, share_b = ((each / error) ** 2 for each in errors)
    freedom = 1 / (share_a**2 / (len(a) - 1) + share_b**2 / (len(b) - 1))
    return _result("Welch", statistics.fmean(a) - statistics.fmean(b), error, freedom)


def paired(a: Sequence[float], b: Sequence[float]) -> TTest | None:
    """Of values that belong together in pairs, at least two. None: all differences are the same.

    Source: Student 1908, Biometrika 6.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if max(differences) - min(differences) <= _TINY * max(map(abs, [*a, *b])):
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _result("paired", statistics.fmean(differences), error, len(differences) - 1)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values, corrected for being several, in their order.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, highest = [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[i]))
        corrected[i] = highest
    return corrected


def _result(
    method: Literal["Welch", "paired"], difference: float, error: float, freedom: float
) -> TTest:
    """`error`: standard error of the difference."""
    from scipy.special import stdtr, stdtrit

    p = 2 * float(stdtr(freedom, -abs(difference / error)))
    half = error * float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return TTest(method, difference, difference - half, difference + half, freedom, p)


def _constant(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= _TINY * max(map(abs, values))
