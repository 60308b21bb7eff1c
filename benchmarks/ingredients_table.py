"""The table of `ingredients.py`: top-1 of each ingredient beside that of the base, and what the seeds allow to say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hvdtrain.analysis.compare.significance import ALPHA, TTest, holm, welch
from hvdtrain.analysis.spread import spread

HOW = (
    "An ingredient is called higher or lower than the base only if every seed of it is above, or below, all seeds of the "
    "base, and a two-sided Welch test of the means gives p < 0.05 after Holm's correction for all rows. Where the seeds "
    "are apart without such a p, the table says just that: every seed higher, or lower. Everything else is within the "
    "spread. The interval of a difference is of 95 %, for itself. Top-1 is that of the last epoch."
)


@dataclass(frozen=True)
class Row:
    """One ingredient: a value of each finished seed, and the test against the base."""

    name: str
    settings: str
    top1: list[float]
    """In percent."""
    loss: list[float]
    seconds: list[float]
    """Of training, without evaluation."""
    diverged: int
    test: TTest | None = None
    verdict: str = ""


def tested(rows: Sequence[Row]) -> list[Row]:
    """With the verdicts that `HOW` explains."""
    base = rows[0]
    tests = [
        welch(row.top1, base.top1) if min(len(row.top1), len(base.top1)) > 1 else None
        for row in rows[1:]
    ]
    corrected = iter(holm([test.p for test in tests if test]))
    found = [base]
    for row, test in zip(rows[1:], tests, strict=True):
        shown = test is not None and next(corrected) < ALPHA
        if row.diverged:
            said = f"{row.diverged} diverged"
        elif test is None:
            said = "fewer than two seeds" if min(len(row.top1), len(base.top1)) < 2 else "no spread"
        elif min(row.top1) > max(base.top1):
            said = "higher" if shown else "every seed higher"
        elif max(row.top1) < min(base.top1):
            said = "lower" if shown else "every seed lower"
        else:
            said = "within the spread"
        found.append(replace(row, test=test, verdict=said))
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| | settings | top-1, % | difference (95 %) | | loss | training, s |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        test = row.test
        gap = f"{test.difference:+.2f} ({test.low:+.2f} … {test.high:+.2f})" if test else ""
        of = (
            "–" if (each := spread(values)) is None else each.text(digits)
            for values, digits in ((row.top1, 4), (row.loss, 4), (row.seconds, 3))
        )
        top1, loss, seconds = of
        settings = f"`{row.settings}`" if row.settings else ""
        cells = [row.name, settings, top1, gap, row.verdict, loss, seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    of_test = vars(row.test) if row.test else None
    mean = statistics.fmean(row.top1) if row.top1 else None
    return {**vars(row), "test": of_test, "mean_top1": mean}
