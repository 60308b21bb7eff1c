"""Charts of studies: curves with their spread, bars and heat maps, as SVG for a page and as files."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from hvdtrain.report.contours import Contours, draw_contours
from hvdtrain.report.palette import DASHES
from hvdtrain.report.plots import COLORS, GRID, INK, MARK, dress, for_page

MINOR = 20.0
"""Highest over lowest value up to which a logarithmic axis has numbers between the powers of ten: the horizontal
axis all of them, beyond it 2 and 5; the vertical one 2 and 5."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MARKED = 8
"""About so many points of a line have a marker."""


@dataclass(frozen=True)
class Line:
    """A curve, with the band from `low` to `high` around it if there is a spread."""

    label: str
    xs: list[float]
    ys: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    color: int = 0
    """Number in the palette; `dash` in the line styles."""
    dash: int = 0
    width: float = 1.5
    """In points. Below 1 it is one of many: pale, and without markers."""


@dataclass(frozen=True)
class Bar:
    """A bar with its spread; None leaves a gap with its label."""

    label: str
    height: float | None
    error: float | None = None
    color: int = 0
    hatched: bool = False


@dataclass(frozen=True)
class Heat:
    """Values [rows, columns], lowest first; None: `gap`. `line` goes through (column, row) positions."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    line: list[tuple[float, float]]
    gap: str = "diverged"


@dataclass(frozen=True)
class Chart:
    """One picture. `stem` is its file name."""

    stem: str
    title: str
    xlabel: str
    ylabel: str
    note: str = ""
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    heat: Heat | None = None
    contours: Contours | None = None
    log_x: bool = False
    log_y: bool = False
    mark: float | None = None
    """Height of a dotted line."""
    upright: tuple[float, ...] = ()
    """Places of dotted lines across it."""
    x_ticks: tuple[float, ...] = ()
    """Numbers at a logarithmic axis; empty: as they fall."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.lines or self.bars or self.heat or self.contours)


def svg(chart: Chart) -> str:
    """An `<svg>` element for a page, in its colours, with a legend below it."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9.5}):
        figure = _figure(chart, (4.6, 3.4))
        FigureCanvasSVG(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    colors = (
        {}
        if chart.heat or chart.contours
        else {color: f"--run-{i}" for i, color in enumerate(COLORS)}
    )
    return for_page(buffer.getvalue(), chart.stem, colors)


def save(chart: Chart, folder: Path) -> None:
    """The chart with its title as PNG and SVG files. Raises OSError."""
    with matplotlib.rc_context({"font.size": 10}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack letters of a name
        figure = _figure(chart, (7, 4.8))
        title = chart.title + (f"\n{chart.note}" if chart.note else "")
        figure.axes[0].set_title(title, fontsize=10).set_parse_math(False)
        FigureCanvasAgg(figure)
        figure.savefig(folder / f"{chart.stem}.png", dpi=140)
        FigureCanvasSVG(figure)
        figure.savefig(folder / f"{chart.stem}.svg", metadata={"Date": None})


def _figure(chart: Chart, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    if chart.heat:
        _draw_heat(axes, chart.heat)
    elif chart.contours:
        draw_contours(axes, chart.contours)
    elif chart.bars:
        _draw_bars(axes, chart)
    else:
        _draw_lines(axes, chart)
    if chart.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        low, high = axes.get_ylim()
        few = high < MINOR * low
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if few else NullFormatter())
        axes.tick_params(axis="y", which="both", colors=INK, length=0)
    axes.set_xlabel(chart.xlabel, color=INK)
    axes.set_ylabel(chart.ylabel, color=INK)
    if any(line.label for line in chart.lines):
        legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_color(INK)
    return figure


def _draw_lines(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        color, dash = COLORS[line.color % len(COLORS)], DASHES[line.dash % len(DASHES)]
        if line.low is not None and line.high is not None:
            axes.fill_between(line.xs, line.low, line.high, color=color, alpha=0.13, linewidth=0)
        thin = line.width < 1
        # Markers tell lines apart where colours do not: for the colour-blind, and in a grey print.
        marker = "" if thin else MARKERS[line.color % len(MARKERS)]
        every, size = max(1, len(line.xs) // MARKED), 7 if len(line.xs) == 1 else 4
        how = {"linestyle": dash, "marker": marker, "markersize": size, "linewidth": line.width}
        how |= {"markevery": (line.color % every, every)}
        how |= {"alpha": 0.75} if thin else {}
        axes.plot(line.xs, line.ys, color=color, label=line.label, **how)  # type: ignore[arg-type]
    if chart.mark is not None:
        axes.axhline(chart.mark, color=MARK, linewidth=1, linestyle=":")
    for place in chart.upright:
        axes.axvline(place, color=MARK, linewidth=1, linestyle=":")
    dress(axes)
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params(axis="x", which="both", colors=INK, length=0, rotation=40)
        low, high = axes.get_xlim()
        if high > MINOR * low:
            axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        if chart.x_ticks:
            axes.set_xticks(chart.x_ticks, [f"{tick:,.10g}" for tick in chart.x_ticks])
            axes.xaxis.set_minor_locator(NullLocator())


def _draw_bars(axes: Axes, chart: Chart) -> None:
    for index, bar in enumerate(chart.bars):
        if bar.height is None:
            continue
        axes.bar(
            index,
            bar.height,
            yerr=bar.error,
            color=COLORS[bar.color % len(COLORS)],
            alpha=0.85,
            hatch="///" if bar.hatched else None,
            edgecolor=INK,
            linewidth=0.5,
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": INK},
        )
    dress(axes)
    axes.xaxis.grid(visible=False)
    axes.set_xticks(range(len(chart.bars)), [bar.label for bar in chart.bars])
    if chart.mark is not None:
        axes.axhline(chart.mark, color=MARK, linewidth=1, linestyle=":")


def _draw_heat(axes: Axes, heat: Heat) -> None:
    known = [value for row in heat.values for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    table = [[float("nan") if v is None else v for v in row] for row in heat.values]
    image = axes.imshow(table, origin="lower", cmap="cividis", aspect="auto", vmin=low, vmax=high)
    for y, row in enumerate(heat.values):
        for x, value in enumerate(row):
            text = heat.gap if value is None else f"{value:.3f}"
            dark = value is not None and value < (low + high) / 2
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black")
    if len(heat.line) > 1:
        xs, ys = zip(*heat.line, strict=True)
        axes.plot(xs, ys, color="#d55e00", linewidth=2, linestyle="--", marker="o", clip_on=True)
    axes.set_xticks(range(len(heat.columns)), heat.columns)
    axes.set_yticks(range(len(heat.rows)), heat.rows)
    axes.tick_params(colors=INK, length=0)
    axes.set_xlim(-0.5, len(heat.columns) - 0.5)
    axes.set_ylim(-0.5, len(heat.rows) - 0.5)
    axes.spines[:].set_color(GRID)
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.colorbar(image, ax=axes).ax.tick_params(colors=INK, length=0)
