"""The history of a run in bounded memory: when it is full, neighbouring points are merged."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

LIMIT = 400
"""Most points kept; an even number, since a full history is merged to half of it."""
DIGITS = 6
"""Significant digits of the figures in `columns`."""


def finite(value: Any) -> float | None:
    """A number as float; None for NaN, infinities and anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


class History:
    """Columns of figures of a run of any length, oldest first. Threads may read while one writes."""

    def __init__(self, newest: Sequence[str], means: Sequence[str]) -> None:
        """One point stands for one or more reports. Its `newest` columns (position and settings)
        are those of the last report, its `means` columns (measurements) are averaged."""
        self._lock = threading.Lock()
        self._newest, self._means = tuple(newest), tuple(means)
        self._places = np.zeros((LIMIT, len(newest)))
        self._sums = np.zeros((LIMIT, len(means)))
        self._weights = np.zeros((LIMIT, len(means)))
        self._size = 0
        self._group = self._filled = 1  # reports per point, and in the last point

    def add(self, values: Mapping[str, Any], weight: float) -> None:
        """Add one report. `weight`: its weight in means, as the seconds for a share of the time."""
        places = [finite(values.get(key)) for key in self._newest]
        figures = np.array([finite(values.get(key)) for key in self._means], dtype=float)
        known = np.isfinite(figures)
        with self._lock:
            if self._filled == self._group:
                self._begin_point()
            at = self._size - 1
            self._filled += 1
            self._places[at] = places
            self._sums[at, known] += weight * figures[known]
            self._weights[at, known] += weight

    def columns(self) -> dict[str, list[float | None]]:
        """Every column by its name, all of equal length; None where nothing was reported."""
        with self._lock:
            places = self._places[: self._size].copy()
            sums, weights = self._sums[: self._size].copy(), self._weights[: self._size].copy()
        means = np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)
        table = np.concatenate([places, means], axis=1)
        names = self._newest + self._means
        return {name: rounded(column) for name, column in zip(names, table.T, strict=True)}

    def _begin_point(self) -> None:
        if self._size == LIMIT:
            half = LIMIT // 2
            self._places[:half] = self._places[1::2]
            for array in (self._sums, self._weights):
                array[:half] = array[0::2] + array[1::2]
                array[half:] = 0.0
            self._size, self._group = half, 2 * self._group
        self._size += 1
        self._filled = 0


def rounded(column: np.ndarray) -> list[float | None]:
    """[n] figures for JSON: DIGITS significant digits, None for those that are not finite."""
    size = np.abs(np.where(np.isfinite(column) & (column != 0), column, 1.0))
    scale = 10.0 ** np.clip(DIGITS - 1 - np.floor(np.log10(size)), -300, 300)
    figures = np.round(column * scale) / scale
    return [x if math.isfinite(x) else None for x in figures.tolist()]
