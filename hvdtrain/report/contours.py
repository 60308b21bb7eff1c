"""A plane with the heights above it, as contours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from hvdtrain.report.landscapes import levels_between, short_number
from hvdtrain.report.plots import GRID, INK

WIDE = 1.5
"""Largest over smallest height from which levels have equal ratios: those near the minimum count most."""


@dataclass(frozen=True)
class Contours:
    """Heights [x, y]; None where there is none. Pictures of one `low` and `high` have the same levels."""

    xs: list[float]
    ys: list[float]
    values: list[list[float | None]]
    low: float
    high: float
    unit: str


def draw_contours(axes: Axes, plane: Contours) -> None:
    """Filled, with black lines, the height of every second level, and a star at (0, 0)."""
    levels = levels_between(plane.low, plane.high, WIDE)
    known = np.array(plane.values, dtype=np.float64).T
    values = np.clip(known, levels[0], levels[-1])
    norm = (LogNorm if levels[-1] > WIDE * levels[0] > 0 else Normalize)(levels[0], levels[-1])
    filled = axes.contourf(plane.xs, plane.ys, values, levels, cmap="cividis_r", norm=norm)
    axes.contour(plane.xs, plane.ys, values, levels[::2], colors="black", linewidths=0.5)
    axes.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=11)
    axes.tick_params(colors=INK, length=0)
    axes.spines[:].set_color(GRID)
    figure = axes.figure
    assert isinstance(figure, Figure)
    bar = figure.colorbar(filled, ax=axes, format=short_number)
    bar.ax.tick_params(colors=INK, length=0)
    bar.set_label(plane.unit, color=INK)
