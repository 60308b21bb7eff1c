"""Where the time goes: one stacked plot of the shares of the time, from 0 to 100 %."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from hvdtrain.report import palette
from hvdtrain.report.events import number
from hvdtrain.report.phases import ratio_names
from hvdtrain.report.run import Point, RunRecord

LOST = "lost_"
BARS = 100
"""Most bars of a plot; neighbours are averaged by their time if there are more."""
REST = "#dadee3"
COLORS = (palette.BLUE, palette.ORANGE, palette.PURPLE, palette.YELLOW, palette.VERMILLION)
"""Of the layers from below, repeated if there are more."""


@dataclass(frozen=True)
class Layer:
    """One share of the time: its name, its mean over the run, and its height in each bar."""

    name: str
    mean: float
    heights: list[float]
    """0-1, NaN where the share is not known. Shares below zero have the height 0."""
    color: str


@dataclass(frozen=True)
class Shares:
    """One stacked plot, of one run. `stem` is its file name."""

    stem: str
    title: str
    edges: list[float]
    """The bars' edges in epochs, one more than there are bars."""
    layers: list[Layer]
    """From below. The last one fills up to 100 %."""
    note: str = ""


def share_names(run: RunRecord) -> list[str]:
    """The shares that add up: the lost time by cause, or the waits of a run that has no causes."""
    names = ratio_names(run)
    return [name for name in names if name.startswith(LOST)] or names


def shares_plots(runs: list[RunRecord]) -> list[Shares]:
    """A plot for each run that has shares."""
    found = [(index, run) for index, run in enumerate(runs) if share_names(run)]
    return [
        _plot(run, "shares" if len(runs) == 1 else f"shares-{index + 1}", len(runs) > 1)
        for index, run in found
    ]


def _plot(run: RunRecord, stem: str, named: bool) -> Shares:
    names = share_names(run)
    groups = _groups(run.train)
    means = {name: [_mean(name, group) for group in groups] for name in names}
    stacks = [_stack([means[name][bar] for name in names]) for bar in range(len(groups))]
    layers = [
        Layer(
            name.removeprefix(LOST).replace("_", " "),
            _mean(name, run.train),
            [stack[place] for stack in stacks],
            COLORS[place % len(COLORS)],
        )
        for place, name in enumerate(names)
    ]
    lost = names[0].startswith(LOST)
    rest = Layer(
        "not lost" if lost else "computing",
        _drawn_mean([1 - sum(stack) for stack in stacks], groups),
        [1 - sum(stack) for stack in stacks],
        REST,
    )
    title = f"{'lost time by cause' if lost else 'share of time'}{f': {run.label}' * named}"
    below = any(value < 0 for values in means.values() for value in values)
    note = "gained time (shares below zero) is not drawn" if below else ""
    edges = [groups[0][0].began_at, *(group[-1].epoch for group in groups)]
    return Shares(stem, title, edges, [*layers, rest], note)


def _groups(points: list[Point]) -> list[list[Point]]:
    size = -(-len(points) // BARS)
    return [points[i : i + size] for i in range(0, len(points), size)]


def _mean(name: str, points: list[Point]) -> float:
    """Mean weighted by time; NaN if no point has this share."""
    known = [(v, p.seconds) for p in points if (v := number(p.values, f"{name}_ratio")) is not None]
    total = sum(seconds for _value, seconds in known)
    return sum(value * seconds for value, seconds in known) / total if total else math.nan


def _drawn_mean(heights: list[float], groups: list[list[Point]]) -> float:
    """Mean of the drawn heights, weighted by the bars' time."""
    weights = [sum(point.seconds for point in group) for group in groups]
    known = [(h, w) for h, w in zip(heights, weights, strict=True) if not math.isnan(h)]
    total = sum(w for _h, w in known)
    return sum(h * w for h, w in known) / total if total else math.nan


def _stack(values: list[float]) -> list[float]:
    """The heights of one bar: none below zero, and at most 1 together."""
    if all(math.isnan(value) for value in values):
        return values
    heights = [0.0 if math.isnan(value) else max(0.0, value) for value in values]
    return [height / max(1.0, sum(heights)) for height in heights]


def draw(axes: Axes, shares: Shares) -> None:
    """The stacked bars. The legend is left to the caller, outside of the axes."""
    base = [0.0] * (len(shares.edges) - 1)
    for layer in shares.layers:
        top = [low + height for low, height in zip(base, layer.heights, strict=True)]
        axes.stairs(top, shares.edges, baseline=base, fill=True, color=layer.color, linewidth=0)
        base = top
    axes.set_xlim(shares.edges[0], shares.edges[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("epochs")


def add_legend(figure: Figure, shares: Shares) -> None:
    """The layers' names with their means, below the axes."""
    patches = [Patch(color=layer.color) for layer in shares.layers]
    names = [f"{layer.name} {percent(layer.mean)}" for layer in shares.layers]
    legend = figure.legend(
        patches, names, loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def percent(share: float) -> str:
    """A share for the legend."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
