"""The curves of a report, drawn as SVG for the page and as PNG for slides."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from hvdtrain.report.events import number
from hvdtrain.report.run import Point, RunRecord
from hvdtrain.report.shares import REST, Shares, add_legend, shares_plots
from hvdtrain.report.shares import draw as draw_shares
from hvdtrain.report.targets import Target

COLORS = ("#0068b5", "#d55e00", "#00876c", "#b0468e", "#8f6b00", "#2f9bd8", "#6a51b8", "#6b7280")
"""One for each run, repeated if there are more runs. On a dark background the page has lighter ones."""
INK, GRID, MARK = "#454545", "#dcdcdc", "#010203"
POINTS = 200
"""Most points of a curve; neighbours are averaged if there are more."""
GRADIENT = {
    "gradient_norm": "gradient norm",
    "grad_norm": "gradient norm",
    "gradient_noise_scale": "gradient noise scale (images)",
    "loss_scale": "loss scale",
}
"""Keys of training intervals that are drawn if a run has them, with their titles."""

Axis = Callable[[Point], float]


@dataclass(frozen=True)
class Series:
    """One curve in the colour of `run`. Styles: line, dashed, faint, marked, step."""

    run: int
    xs: list[float]
    ys: list[float]
    style: str = "line"


@dataclass(frozen=True)
class Plot:
    """One picture. `stem` is its file name; `note` explains the line styles."""

    stem: str
    title: str
    xlabel: str
    series: list[Series]
    note: str = ""
    marks: tuple[float, ...] = ()
    """Heights of horizontal lines: the targets."""
    percent: bool = False
    full: bool = False
    """Whether the axis goes from 0 to at least 1."""
    log: bool = False


Picture = Plot | Shares


def sections(runs: list[RunRecord], targets: list[Target]) -> list[tuple[str, list[Picture]]]:
    """The plots by section; plots without any point are left out."""
    found: list[tuple[str, list[Plot]]] = [
        ("Accuracy and loss", [*_accuracy(runs, targets), _loss(runs, targets)]),
        (
            "Learning rate, image size and batch",
            [
                _of_train(runs, "lr", "learning rate", "line"),
                _of_train(runs, "image_size", "image size (pixels)", "step"),
                _of_train(runs, "global_batch_size", "global batch (images)", "step"),
            ],
        ),
        ("Throughput", [_of_train(runs, "images_per_second", "images/s, all ranks", "line")]),
        (
            "Efficiency",
            [_of_train(runs, "efficiency", "scaling efficiency", "line", True)],
        ),
        ("Gradients", [_of_train(runs, key, title, "line") for key, title in GRADIENT.items()]),
    ]
    drawn: dict[str, list[Picture]] = {
        title: [plot for plot in plots if plot.series] for title, plots in found
    }
    drawn["Efficiency"] += shares_plots(runs)
    return [(title, plots) for title, plots in drawn.items() if plots]


def _accuracy(runs: list[RunRecord], targets: list[Target]) -> list[Plot]:
    points = [point for run in runs for point in run.evals]
    scale, unit = time_unit(max((p.train_s for p in points), default=0.0))
    wall_scale, wall_unit = time_unit(max((p.wall_s for p in points), default=0.0))
    million = max((p.samples for p in points), default=0.0) >= 1e6
    images, of = (1e6, "million") if million else (1e3, "thousand")
    axes: list[tuple[str, str, Axis]] = [
        ("epochs", "epochs", lambda point: point.epoch),
        ("samples", f"training images, {of}", lambda point: point.samples / images),
        ("training-time", f"training time, {unit}", lambda point: point.train_s / scale),
        ("wall-time", f"wall time, {wall_unit}", lambda point: point.wall_s / wall_scale),
    ]
    marks = tuple(target.value for target in targets if target.metric != "loss")
    plots = []
    for stem, xlabel, x in axes:
        series = []
        for index, run in enumerate(runs):
            for key, style in (("top1", "marked"), ("top5", "dashed")):
                series += _series(index, run.evals, x, key, style)
        plots.append(
            Plot(
                stem=f"accuracy-{stem}",
                title=f"accuracy over {stem.replace('-', ' ')}",
                xlabel=xlabel,
                series=series,
                note="top-1 solid, top-5 dashed" + ("; targets dotted" if marks else ""),
                marks=marks,
                percent=True,
            )
        )
    return plots


def _loss(runs: list[RunRecord], targets: list[Target]) -> Plot:
    series = []
    for index, run in enumerate(runs):
        series += _series(index, run.train, lambda point: point.epoch, "loss", "faint")
        series += _series(index, run.evals, lambda point: point.epoch, "loss", "marked")
    marks = tuple(target.value for target in targets if target.metric == "loss")
    note = "evaluation solid, training faint" + ("; targets dotted" if marks else "")
    return Plot("loss", "loss per image", "epochs", series, note, marks)


def _of_train(
    runs: list[RunRecord], key: str, title: str, style: str, percent: bool = False
) -> Plot:
    series = [
        one
        for index, run in enumerate(runs)
        for one in _series(index, run.train, lambda point: point.epoch, key, style)
    ]
    heights = [y for one in series for y in one.ys]
    if style == "step" and len(set(heights)) == 1:
        series = []  # the table of phases shows it
    log = (
        key in GRADIENT and bool(heights) and min(heights) > 0 and max(heights) > 50 * min(heights)
    )
    return Plot(
        stem=key.replace("_", "-"),
        title=title,
        xlabel="epochs",
        series=series,
        percent=percent,
        full=key == "efficiency",
        log=log,
    )


def _series(index: int, points: Iterable[Point], x: Axis, key: str, style: str) -> list[Series]:
    """One curve, or none if no point has `key`."""
    pairs = [(x(p), value) for p in points if (value := number(p.values, key)) is not None]
    if not pairs:
        return []
    if style in ("line", "faint"):
        pairs = _thinned(pairs)
    xs, ys = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return [Series(index, xs, ys, style)]


def _thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points: means of neighbours."""
    size = -(-len(pairs) // POINTS)
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def time_unit(seconds: float) -> tuple[float, str]:
    """A unit that suits this time: its length in seconds, and its name."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def svg(plot: Picture) -> str:
    """An `<svg>` element: its colours are CSS variables of the page, and it refers to no other file."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9.5}):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        _draw_any(figure.add_subplot(), plot)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    runs = {color: f"--run-{index}" for index, color in enumerate(COLORS)}
    return for_page(
        buffer.getvalue(), plot.stem, runs if isinstance(plot, Plot) else {REST: "--rest"}
    )


def for_page(text: str, stem: str, colors: dict[str, str]) -> str:
    """`colors` are the CSS variables in place of the plot's colours."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text[text.index("<svg") :])
    text = text.replace(' id="', f' id="{stem}-')
    text = re.sub(r'(url\(|href=")#', rf"\1#{stem}-", text)
    names = colors | {INK: "--ink-2", GRID: "--grid", MARK: "--ink"}
    for color, name in names.items():
        text = text.replace(color, f"var({name})")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1).strip()


def png(plot: Picture, labels: list[str], path: Path) -> None:
    """The plot as a PNG file, with a legend if there are several runs."""
    with matplotlib.rc_context({"font.size": 10}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack letters of a name
        png_figure(plot, labels).savefig(path, dpi=140)


def png_figure(plot: Picture, labels: list[str]) -> Figure:
    """The plot with its title; legends are outside of the axes."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_any(axes, plot)
    title = axes.set_title(plot.title + (f"\n{plot.note}" if plot.note else ""), fontsize=10)
    title.set_parse_math(False)
    if isinstance(plot, Shares):
        add_legend(figure, plot)
    elif len(labels) > 1:
        _add_runs(figure, sorted({one.run for one in plot.series}), labels)
    return figure


def _add_runs(figure: Figure, shown: list[int], labels: list[str]) -> None:
    lines = [Line2D([], [], color=COLORS[run % len(COLORS)]) for run in shown]
    legend = figure.legend(
        lines, [str(run) for run in shown], loc="outside lower center", frameon=False
    )
    for text, run in zip(legend.get_texts(), shown, strict=True):
        text.set_parse_math(False)
        text.set_text(labels[run])


def _draw_any(axes: Axes, plot: Picture) -> None:
    if isinstance(plot, Shares):
        draw_shares(axes, plot)
    else:
        _draw(axes, plot)
    dress(axes)


def _draw(axes: Axes, plot: Plot) -> None:
    for mark in plot.marks:
        axes.axhline(mark, color=MARK, linewidth=1, linestyle=":")
    for one in plot.series:
        color = COLORS[one.run % len(COLORS)]
        if one.style == "step":
            axes.step(one.xs, one.ys, where="pre", color=color, linewidth=1.6)
        elif one.style == "faint" or (one.style == "line" and len(one.xs) > 60):
            alpha = 0.45 if one.style == "faint" else 1.0
            axes.plot(one.xs, one.ys, color=color, linewidth=1.0, alpha=alpha)
        elif one.style == "dashed":
            axes.plot(one.xs, one.ys, "--", color=color, linewidth=1.3)
        else:
            dot = "." if one.style == "marked" or len(one.xs) == 1 else ""
            axes.plot(one.xs, one.ys, marker=dot, color=color, linewidth=1.6)
    if plot.full:
        axes.set_ylim(0, 1.04 * max(1.0, *(max(one.ys) for one in plot.series)))
    if plot.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    elif max(y for one in plot.series for y in one.ys) >= 1000:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if plot.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(plot.xlabel)


def dress(axes: Axes) -> None:
    """Grid, spines and colours, the same in every plot."""
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 4, 5, 10]))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
