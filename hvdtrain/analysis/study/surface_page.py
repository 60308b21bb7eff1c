"""What the report of a study shows of the loss around the weights of its members."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hvdtrain.analysis.study.surfaces import Around, Line, Plane, Values
from hvdtrain.analysis.study.table import Group
from hvdtrain.report.charts import Bar, Chart
from hvdtrain.report.charts import Line as Curve
from hvdtrain.report.contours import Contours
from hvdtrain.report.landscapes import WIDE
from hvdtrain.report.page import Table
from hvdtrain.report.study import Section
from hvdtrain.report.text import MISSING

Style = dict[str, tuple[int, int]]
"""Colour and dash of each group, by its label."""


def surface_sections(groups: Sequence[Group], style: Style, around: Around) -> list[Section]:
    """Sharpness, the lines between members, and landscapes; what was not measured is left out."""
    found = [
        _sharpness(groups, style),
        _between(groups, style, around),
        _landscapes(groups, style, around),
    ]
    return [
        section for section in found if section.table or any(not c.empty for c in section.charts)
    ]


def _sharpness(groups: Sequence[Group], style: Style) -> Section:
    epsilons = sorted({epsilon for group in groups for epsilon in group.epsilons}, reverse=True)
    spreads = [[group.of(f"sharpness:{epsilon:g}") for epsilon in epsilons] for group in groups]
    rows = [
        [group.label, *(MISSING if value is None else value.text(3) for value in values)]
        for group, values in zip(groups, spreads, strict=True)
    ]
    charts = []
    for column, epsilon in enumerate(epsilons):
        bars = []
        for group, values in zip(groups, spreads, strict=True):
            color, dash = style[group.label]
            value = values[column]
            height, error = (value.mean, value.deviation) if value else (None, None)
            bars.append(Bar(f"{group.batch}\n{group.rate:g}", height, error, color, dash > 0))
        several = any(bar.error is not None for bar in bars)
        note = "lines: ± one standard deviation over seeds" if several else ""
        title = f"sharpness, ε = {epsilon:g}"
        ylabel = "100 · rise of the loss / (1 + loss)"
        charts.append(
            Chart(f"sharpness-{epsilon:g}", title, "batch, rate", ylabel, note, bars=tuple(bars))
        )
    head = ["batch", *(f"ε = {epsilon:g}" for epsilon in epsilons)]
    text = (
        "How far the training loss rises in a box of ε (|w| + 1) around the weights with the lowest "
        "validation loss (Keskar et al. 2017): a larger value is a sharper minimum."
    )
    table = Table(head, rows, list(range(1, len(head)))) if epsilons else None
    return Section("Sharpness", text, table, tuple(charts))


def _between(groups: Sequence[Group], style: Style, around: Around) -> Section:
    """A picture for each group with the lines to all later ones, and the barriers of all pairs."""
    lines = _by_labels(groups, around)
    labels = [group.label for group in groups if any(group.label in pair for pair in lines)]
    charts = []
    for number, label in enumerate(labels):
        own = {pair[1]: line for pair, line in lines.items() if pair[0] == label}
        curves = tuple(_curve(f"to {to}", line, style[to]) for to, line in own.items())
        charts.append(
            Chart(
                f"line-from-{number + 1}",
                f"from batch {label}",
                "α: weights (1 − α) · first + α · second",
                "training loss per image",
                "dotted: the two ends",
                lines=curves,
                log_y=_wide(line.loss for line in own.values()),
                upright=(0.0, 1.0),
            )
        )
    rows = [
        [label, *(_barrier_text(lines.get((label, to))) for to in labels[1:])]
        for label in labels[:-1]
    ]
    text = (
        "The training loss on the straight line between the weights of two members of the first seed. The "
        "barrier, in the table, is how far it rises above the straight line between the losses of the "
        "ends: about 0 means that both lie in one valley."
    )
    head = ["barrier from, to", *labels[1:]]
    table = Table(head, rows, list(range(1, len(head)))) if rows else None
    return Section("Between the ends", text, table, tuple(charts))


def _by_labels(groups: Sequence[Group], around: Around) -> dict[tuple[str, str], Line]:
    labels = {result.name: group.label for group in groups for result in group.results}
    return {
        (labels[first], labels[second]): line
        for (first, second), line in around.between.items()
        if first in labels and second in labels
    }


def barrier(line: Line) -> float | None:
    """Highest rise of the loss, for α from 0 to 1, above the straight line between its values there; None if
    it is not known at both ends."""
    points = [
        (alpha, loss)
        for alpha, loss in zip(line.axes[0], line.loss, strict=True)
        if -1e-9 <= alpha <= 1 + 1e-9
    ]
    if not points or points[0][1] is None or points[-1][1] is None:
        return None
    first, last = points[0][1], points[-1][1]
    rises = [
        math.inf if loss is None else loss - (1 - alpha) * first - alpha * last
        for alpha, loss in points
    ]
    return max(rises)


def _barrier_text(line: Line | None) -> str:
    height = None if line is None else barrier(line)
    return MISSING if height is None else f"{height:.3f}"


def _landscapes(groups: Sequence[Group], style: Style, around: Around) -> Section:
    labels = {result.name: group.label for group in groups for result in group.results}
    lines = {labels[name]: line for name, line in around.lines.items() if name in labels}
    planes = {labels[name]: plane for name, plane in around.planes.items() if name in labels}
    curves = tuple(_curve(label, line, style[label]) for label, line in lines.items())
    along = "1 is the norm of each filter"
    charts = [
        Chart(
            "landscape-line",
            "along one random direction",
            f"distance; {along}",
            "training loss per image",
            lines=curves,
            log_y=_wide(line.loss for line in lines.values()),
        )
    ]
    rows = (row for plane in planes.values() for row in plane.loss)
    known = [loss for row in rows for loss in row if loss is not None]
    for number, (label, plane) in enumerate(planes.items()):
        charts.append(_plane(label, number + 1, plane, min(known), max(known), along))
    text = (
        "The training loss around the weights of the first seed, in random directions whose filters have the "
        "norms of the weights' filters (Li et al. 2018), the same ones for all: wider is flatter. Blank: no "
        "finite loss."
    )
    return Section("Landscapes", text, None, tuple(charts))


def _plane(label: str, number: int, plane: Plane, low: float, high: float, along: str) -> Chart:
    xs, ys = plane.axes
    contours = Contours(xs, ys, plane.loss, low, high, "training loss per image")
    return Chart(
        f"landscape-{number}",
        f"batch {label}",
        f"first direction; {along}",
        "second direction",
        contours=contours,
    )


def _curve(label: str, line: Line, style: tuple[int, int]) -> Curve:
    xs, ys = [], []
    for x, loss in zip(line.axes[0], line.loss, strict=True):
        if loss is not None:
            xs.append(x)
            ys.append(loss)
    return Curve(label, xs, ys, color=style[0], dash=style[1])


def _wide(losses: Iterable[Values]) -> bool:
    known = [loss for values in losses for loss in values if loss is not None]
    return bool(known) and max(known) > WIDE * min(known) > 0
