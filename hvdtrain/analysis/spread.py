"""Mean and spread over runs that differ in their seeds, and tables as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds (n - 1); the latter is None for a single one."""

    mean: float
    deviation: float | None
    count: int

    def text(self, digits: int = 4) -> str:
        """Such as 0.3441 ± 0.0012."""
        mean = f"{self.mean:.{digits}g}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.2g}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are known; None if none is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, len(known))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line of names, then one for each row; what a row lacks is empty."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
