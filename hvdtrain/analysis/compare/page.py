"""What the page of a comparison shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from hvdtrain.analysis.compare.comparison import Comparison
from hvdtrain.analysis.compare.figures import Figure
from hvdtrain.analysis.compare.groups import Group
from hvdtrain.analysis.compare.pairs import HOW
from hvdtrain.analysis.compare.runs import One
from hvdtrain.analysis.compare.text import pair_cells, seeds_text
from hvdtrain.report.charts import Bar, Chart, Line
from hvdtrain.report.curves import Curve, curve_by_epoch, curve_of, epochs_of, mean_curve
from hvdtrain.report.page import Table
from hvdtrain.report.palette import DASHES
from hvdtrain.report.plots import COLORS
from hvdtrain.report.study import Section
from hvdtrain.report.text import MISSING, duration, plain

AXES = (
    ("epochs", "epochs", "epoch"),
    ("steps", "updates", "update"),
    ("seconds", "training time (seconds)", "time"),
)
"""Attribute of a Curve, label of the axis, and end of title and file name."""
CURVES = (
    ("training loss", "loss per image"),
    ("validation loss", "loss per image"),
    ("top-1", "share of validation images"),
)
BARS = ("best_loss", "best_top1", "images_per_second", "seconds_per_epoch")
_FEW_EPOCHS = 3  # whole ones, below which the training loss is drawn by interval
_MOST_PAIRS = 200
THIN, THICK = 0.8, 2.2


class Curves:
    """The curves of all runs, each computed once."""

    def __init__(self, runs: Sequence[One]) -> None:
        self._runs = runs

    @cached_property
    def by_run(self) -> dict[str, dict[str, Curve]]:
        """By label of the run, then by name."""
        per_epoch = {run.label: epochs_of(run.record) for run in self._runs}
        fine = max(map(len, per_epoch.values())) < _FEW_EPOCHS
        found = {}
        for run in self._runs:
            evals = [*{point.values.get("step"): point for point in run.record.evals}.values()]
            losses = {epoch: loss for epoch, (loss, _s) in per_epoch[run.label].items()}
            found[run.label] = {
                "training loss": (
                    curve_of(run.record.train, "loss")
                    if fine
                    else curve_by_epoch(run.record, losses)
                ),
                "validation loss": curve_of(evals, "loss"),
                "top-1": curve_of(evals, "top1"),
            }
        return found


def about(found: Comparison) -> str:
    """The first line of the page."""
    return f"{len(found.runs)} runs in {len(found.groups)} groups."


def sections_of(found: Comparison) -> list[Section]:
    """All sections; what there is nothing to say of is left out."""
    curves = Curves(found.runs)
    notes = [[str(number + 1), note] for number, note in enumerate(found.notes)]
    sections = [
        Section("Groups", _grouped(found), _groups(found)),
        Section("Runs", "", _runs(found)),
        Section("To know", "", Table(["", "note"], notes, []) if notes else None),
        Section("What differs", "", _differences(found, machine=False)),
        Section(
            "Figures",
            "Mean ± standard deviation: over seeds for results of validation, over runs for the others.",
            _figures(found),
        ),
        Section("More than chance?", _how(found), _pairs(found)),
        Section("Curves", "", None, tuple(_charts(found, curves))),
        Section("Side by side", "", None, tuple(_bars(found))),
        Section("Machines and their settings", "", _differences(found, machine=True)),
    ]
    return [each for each in sections if each.table or any(not c.empty for c in each.charts)]


def _grouped(found: Comparison) -> str:
    if found.group_by:
        return f"Runs of one group have the same {', '.join(found.group_by)}."
    return "Runs of one group differ in seed, name and machine settings only."


def _groups(found: Comparison) -> Table:
    rows = []
    for group in found.groups:
        counts = [str(len(group.runs)), str(len(group.counted))]
        rows.append([group.letter, group.name, *counts, seeds_text(group)])
    return Table(["", "group", "runs", "that count", "seeds"], rows, [2, 3])


def _runs(found: Comparison) -> Table:
    rows = []
    for group in found.groups:
        for run in group.runs:
            figures = run.figures
            seed = MISSING if run.facts.seed is None else str(run.facts.seed)
            numbers = [plain(figures.get(key)) for key in ("epochs", "best_loss", "best_top1")]
            time = duration(figures.get("train_seconds"))
            rows.append([run.label, group.letter, seed, run.state, *numbers, time])
    head = ["run", "group", "seed", "state", "epochs", "lowest validation loss", "highest top-1"]
    return Table([*head, "training time"], rows, [2, 4, 5, 6, 7])


def _differences(found: Comparison, *, machine: bool) -> Table | None:
    rows = [[each.key, *each.cells] for each in found.differences if each.machine == machine]
    return Table(["", *(group.letter for group in found.groups)], rows, []) if rows else None


def _figures(found: Comparison) -> Table:
    rows = [[f.title, *(group.text(f) for group in found.groups)] for f in found.figures]
    head = ["", *(group.letter for group in found.groups)]
    return Table(head, rows, list(range(1, len(head))))


def _how(found: Comparison) -> str:
    left = len(found.pairs) - _MOST_PAIRS
    return HOW + (f" {left} more pairs are in tests.csv." if left > 0 else "")


def _pairs(found: Comparison) -> Table | None:
    in_order = sorted(found.pairs, key=lambda pair: pair.test is None)
    rows = [pair_cells(pair) for pair in in_order[:_MOST_PAIRS]]
    head = ["groups", "figure", "difference", "95 % interval", "p", "test", "result"]
    return Table(head, rows, [2, 3, 4]) if rows else None


def _style(index: int) -> tuple[int, int]:
    """Colour and dash of a group, no two alike among the first 32."""
    return index % len(COLORS), (index + index // len(COLORS)) % len(DASHES)


def _charts(found: Comparison, curves: Curves) -> list[Chart]:
    charts = []
    several = any(len(group.runs) > 1 for group in found.groups)
    note = "thick: mean of a group; thin: its runs" if several else ""
    for name, ylabel in CURVES:
        stem = name.replace(" ", "-")
        for attribute, xlabel, short in AXES:
            lines = [
                line
                for index, group in enumerate(found.groups)
                for line in _lines(group, index, name, attribute, curves)
            ]
            title = f"{name} by {short}"
            charts.append(Chart(f"{stem}-{short}", title, xlabel, ylabel, note, lines=tuple(lines)))
    return charts


def _lines(group: Group, index: int, name: str, attribute: str, curves: Curves) -> list[Line]:
    """The mean of a group, of the runs that count if there are any, and each run."""
    color, dash = _style(index)
    own = [(run, curves.by_run[run.label][name]) for run in group.runs]
    counted = [curve for run, curve in own if run.counted] or [curve for _run, curve in own]
    mean, _deviations = mean_curve([curve for curve in counted if curve.values])
    single = len(group.runs) == 1
    thick = Line(
        *(group.label, getattr(mean, attribute), mean.values, None, None, color, dash),
        width=1.5 if single else THICK,
    )
    thin = [
        Line("", getattr(curve, attribute), curve.values, None, None, color, dash, width=THIN)
        for _run, curve in own
        if curve.values and not single
    ]
    return [*thin, *([thick] if mean.values else [])]


def _bars(found: Comparison) -> list[Chart]:
    return [_bar_chart(found, figure) for figure in found.figures if figure.key in BARS]


def _bar_chart(found: Comparison, figure: Figure) -> Chart:
    bars = []
    for index, group in enumerate(found.groups):
        value, (color, _dash) = group.of(figure), _style(index)
        height, error = (value.mean, value.deviation) if value else (None, None)
        bars.append(Bar(group.letter, height, error, color))
    note = "lines: ± one standard deviation" if any(bar.error for bar in bars) else ""
    ylabel = "seconds" if figure.unit else figure.title
    stem = figure.key.replace("_", "-")
    return Chart(stem, figure.title, "group", ylabel, note, bars=tuple(bars))
