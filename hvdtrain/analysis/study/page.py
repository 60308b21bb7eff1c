"""What the report of a study shows: each question of a batch-size study, as a table and as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from hvdtrain.analysis.spread import Spread
from hvdtrain.analysis.study.surface_page import surface_sections
from hvdtrain.analysis.study.surfaces import Around
from hvdtrain.analysis.study.table import Group, epoch_ratios, split
from hvdtrain.report.charts import Bar, Chart, Line
from hvdtrain.report.curves import Curve, mean_curve
from hvdtrain.report.page import Table
from hvdtrain.report.study import Section
from hvdtrain.report.text import MISSING, duration

AXES = (
    ("epochs", "epochs", "epochs"),
    ("steps", "updates", "updates"),
    ("seconds", "training time (seconds)", "time"),
)
"""Attribute of a Curve, label of the axis, and end of the file name."""
Styles = dict[tuple[int, str, float, int], tuple[int, int]]
BAND = "bands: ± one standard deviation over seeds"


def sections_of(groups: Sequence[Group], pairs: dict[str, Any], around: Around) -> list[Section]:
    """All sections of a batch-size study; what was not measured is left out."""
    styles = _styles(groups)
    by_label = {group.label: _style(group, styles) for group in groups}
    return [
        Section("Results", _counted(groups), _table(groups)),
        Section("Loss", "", None, tuple(_losses(groups, styles))),
        Section("Best results and their price", "", None, tuple(_bars(groups, styles))),
        _distances(groups, styles),
        _travelled(groups, styles),
        _updates(groups, styles),
        _gradients(groups, pairs),
        *surface_sections(groups, by_label, around),
    ]


def _styles(groups: Sequence[Group]) -> Styles:
    """Colour by batch, dash by scaling."""
    batches = sorted({group.batch for group in groups})
    kinds = [*dict.fromkeys((group.scaling, group.ranks) for group in groups)]
    return {
        (g.batch, g.scaling, g.rate, g.ranks): (
            batches.index(g.batch),
            kinds.index((g.scaling, g.ranks)),
        )
        for g in groups
    }


def _style(group: Group, styles: Styles) -> tuple[int, int]:
    return styles[group.batch, group.scaling, group.rate, group.ranks]


def _counted(groups: Sequence[Group]) -> str:
    results = [result for group in groups for result in group.results]
    done = sum(result.finished for result in results)
    text = f"{done} of {len(results)} members that have begun are finished. "
    if bad := sum(group.diverged for group in groups):
        text += f"{bad} diverged and count in no mean. "
    return text + "Mean ± standard deviation over seeds. Times are of the training steps alone."


def _text(value: Spread | None, digits: int = 4) -> str:
    return MISSING if value is None else value.text(digits)


def _table(groups: Sequence[Group]) -> Table:
    columns = (
        ("lowest validation loss", "best_loss", 4),
        ("top-1 there", "best_top1", 4),
        ("epochs to it", "epochs_to_best", 3),
        ("updates to it", "updates_to_best", 4),
        ("seconds to it", "seconds_to_best", 3),
        ("seconds per epoch", "seconds_per_epoch", 3),
        ("generalisation gap", "gap", 3),
        ("distance from start", "distance", 4),
        ("distance per epoch", "epoch_distance", 3),
        ("median update", "update_norm", 3),
        ("noise scale in the run", "noise_scale", 3),
        ("noise scale there", "noise_at_best", 3),
    )
    shown = [column for column in columns if any(group.of(column[1]) for group in groups)]
    rows = [[g.label, *(_text(g.of(key), digits) for _, key, digits in shown)] for g in groups]
    head = ["batch", *(name for name, _, _ in shown)]
    return Table(head, rows, list(range(1, len(head))))


def _losses(groups: Sequence[Group], styles: Styles) -> list[Chart]:
    charts = []
    for name, stem in (("validation loss", "validation-loss"), ("training loss", "training-loss")):
        for attribute, xlabel, short in AXES:
            lines = tuple(_line(g, name, attribute, styles) for g in groups)
            kept = tuple(line for line in lines if line.xs)
            title, log = f"{name} by {short.removesuffix('s')}", attribute == "steps"
            note, ylabel = _note(kept), "loss per image"
            charts.append(
                Chart(f"{stem}-{short}", title, xlabel, ylabel, note, lines=kept, log_x=log)
            )
    return charts


def _note(lines: Sequence[Line]) -> str:
    return BAND if any(line.low is not None for line in lines) else ""


def _line(group: Group, name: str, attribute: str, styles: Styles) -> Line:
    """Mean over seeds, as far as all have come, with the spread."""
    color, dash = _style(group, styles)
    curves = [r.curves[name] for r in group.results if not r.diverged]
    mean, deviations = mean_curve(curves)
    xs, ys = getattr(mean, attribute), mean.values
    if len(curves) < 2:
        return Line(group.label, xs, ys, color=color, dash=dash)
    low = [m - d for m, d in zip(ys, deviations, strict=True)]
    high = [m + d for m, d in zip(ys, deviations, strict=True)]
    return Line(group.label, xs, ys, low, high, color, dash)


def _bars(groups: Sequence[Group], styles: Styles) -> list[Chart]:
    measured = (
        ("best_loss", "lowest validation loss", "loss per image"),
        ("highest_top1", "highest top-1", "share of images"),
        ("seconds_per_epoch", "seconds per epoch", "seconds"),
        ("epochs_to_best", "epochs to the lowest validation loss", "epochs"),
        ("updates_to_best", "updates to the lowest validation loss", "updates"),
        ("seconds_to_best", "time to the lowest validation loss", "seconds of training"),
        ("gap", "generalisation gap", "validation − training loss"),
    )
    return [_bar_chart(groups, styles, *each) for each in measured]


def _bar_chart(groups: Sequence[Group], styles: Styles, key: str, title: str, ylabel: str) -> Chart:
    bars = []
    for group in groups:
        value = group.of(key)
        color, dash = _style(group, styles)
        height, error = (value.mean, value.deviation) if value else (None, None)
        bars.append(Bar(f"{group.batch}\n{group.rate:g}", height, error, color, dash > 0))
    known = tuple(bars) if any(bar.height is not None for bar in bars) else ()
    spread = any(bar.error is not None for bar in bars)
    note = "lines: ± one standard deviation over seeds" if spread else ""
    return Chart(key.replace("_", "-"), title, "batch, rate", ylabel, note, bars=known)


def _distances(groups: Sequence[Group], styles: Styles) -> Section:
    layers = [*dict.fromkeys(name for group in groups for name in group.layers)]
    rows = [
        [g.label, _text(g.of("distance")), *(_text(g.of(f"layer:{name}"), 3) for name in layers)]
        for g in groups
    ]
    curve = tuple(line for g in groups if (line := _line(g, "distance", "epochs", styles)).xs)
    chart = Chart(
        "distance",
        "distance from the start",
        "epochs",
        "L2 norm of the weights",
        _note(curve),
        curve,
    )
    text = "At the lowest validation loss, in all and by layer: how far from its start a run ends."
    head = ["batch", "all", *layers]
    table = Table(head, rows, list(range(1, len(head)))) if layers else None
    return Section("Distance from the start", text, table, (chart,))


def _travelled(groups: Sequence[Group], styles: Styles) -> Section:
    first = groups[0]
    travelled = tuple(
        line for g in groups if (line := _line(g, "epoch distance", "epochs", styles)).xs
    )
    ratios, rows = [], []
    for group in groups[1:]:
        color, dash = _style(group, styles)
        values = epoch_ratios(first, group)
        numbers = [float(epoch) for epoch in range(1, len(values) + 1)]
        if values:
            ratios.append(Line(group.label, numbers, values, color=color, dash=dash))
        if parts := split(first, group):
            share = parts.share_of_fewer
            rows.append(
                [
                    *(group.label, f"{parts.together:.3g}", f"{parts.fewer:.3g}"),
                    *(f"{parts.smaller:.3g}", MISSING if share is None else f"{share:.0%}"),
                    *(f"{parts.distance:.3g}", f"{parts.straighter:.3g}"),
                ]
            )
    head = [
        *("batch", "path ÷", "fewer updates ÷", "smaller updates ÷", "share of fewer"),
        *("distance ÷", "straighter ×"),
    ]
    text = (
        f"Against {first.label}: its path per epoch is so many times as long, by so many times as many "
        "updates of so many times the norm; the share is of the logarithms. The distance between the "
        "ends of an epoch differs less where the path has fewer turns."
    )
    charts = (
        Chart(
            "epoch-distance",
            "distance in an epoch",
            "epochs",
            "L2 norm",
            _note(travelled),
            travelled,
        ),
        Chart(
            *("epoch-distance-ratio", f"distance of {first.batch} ÷ that of the batch", "epochs"),
            "ratio",
            lines=tuple(ratios),
            mark=1.0,
        ),
    )
    table = Table(head, rows, list(range(1, len(head)))) if rows else None
    return Section("Distance travelled in an epoch", text, table, charts)


def _updates(groups: Sequence[Group], styles: Styles) -> Section:
    """The distribution of norms as its density over the logarithm, and the medians."""
    lines = []
    for group in groups:
        color, dash = _style(group, styles)
        percentiles = [r.update_norms for r in group.results if r.update_norms and not r.diverged]
        if percentiles:
            mean = [statistics.fmean(column) for column in zip(*percentiles, strict=True)]
            xs, ys = _density(mean)
            lines.append(Line(f"{group.label}: {mean[50]:.2g}", xs, ys, color=color, dash=dash))
    histogram = Chart(
        *("update-norms", "norms of single updates", "L2 norm of an update"),
        "share of updates per decade",
        "the number in the legend is the median",
        lines=tuple(lines),
        log_x=True,
    )
    medians = _bar_chart(groups, styles, "update_norm", "median norm of an update", "L2 norm")
    return Section("Single updates", "", None, (histogram, medians))


def _density(percentiles: Sequence[float]) -> tuple[list[float], list[float]]:
    """Shares of updates per decade of the norm, in 16 bins of equal width in the logarithm."""
    import numpy as np

    logs = np.log10(np.maximum(percentiles, 1e-30))
    if logs[-1] - logs[0] < 1e-9:
        return [], []
    edges = np.linspace(logs[0], logs[-1], 17)
    below = np.interp(edges, logs, np.linspace(0, 1, len(logs)))
    density = np.diff(below) / np.diff(edges)
    return (10 ** ((edges[1:] + edges[:-1]) / 2)).tolist(), density.tolist()


def _gradients(groups: Sequence[Group], pairs: dict[str, Any]) -> Section:
    rows = []
    for group in groups:
        for result in group.results:
            for where, found in pairs.get(result.name, {}).items():
                noise = found["noise_scale"]
                if not found["pairs"]:
                    continue
                rows.append(
                    [
                        *(group.label, where, f"{found['together']:.3g}", f"{found['apart']:.3g}"),
                        f"{found['ratio']:.3f}",
                        MISSING if noise is None else f"{noise:,.0f}",
                    ]
                )
    head = ["batch", "weights", "|a + b| / 2", "(|a| + |b|) / 2", "ratio", "noise scale, images"]
    text = (
        "Gradients a and b of two batches at the same weights, of the first seed: a batch twice as large "
        "has |a + b| / 2. A ratio of 1 means that both point in one direction, 0.71 that they have nothing "
        "in common: so much smaller are the updates of a batch twice as large at the same rate."
    )
    table = Table(head, rows, [2, 3, 4, 5]) if rows else None
    return Section("The triangle inequality", text if rows else "", table)


def about(groups: Sequence[Group]) -> str:
    """The first line of the page."""
    results = [result for group in groups for result in group.results]
    seconds = sum(r.curves["training loss"].seconds[-1] for r in results if _trained(r.curves))
    return f"{len(results)} runs, {duration(seconds)} of training."


def _trained(curves: dict[str, Curve]) -> bool:
    return bool(curves["training loss"].seconds)
