"""Plots a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdtrain.errors import ResourceError
from hvdtrain.report.palette import DASHES, LINES
from hvdtrain.scaling.ends import Ends, low_high
from hvdtrain.scaling.predict import Point, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(points: Sequence[Point], path: Path, title: str) -> None:
    """Plot efficiency over nodes for each image size and batch, and the hours of the plan.

    There is one band for each link, with a line at both ends. Raises ResourceError if the file cannot be written.
    """
    try:
        draw(points, title).savefig(path, dpi=110)
    except (OSError, ValueError) as error:  # the latter: a format that matplotlib does not know
        raise ResourceError(f"--plot {path}: cannot be written: {error}") from None


def draw(points: Sequence[Point], title: str) -> Figure:
    """The figure of `plot`; its legend is below the panels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    settings = list(dict.fromkeys(p.setting for point in points for p in point.phases))
    panels = len(settings) + 1
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + 0.3), layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for setting, panel in zip(settings, axes, strict=False):
        _draw_efficiency(panel, points, setting)
    _draw_hours(axes[-1], points)
    nodes = sorted({point.cluster.hosts for point in points})
    for panel in axes:
        panel.set_xscale("log", base=2)
        panel.set_xticks(nodes)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.set_xlabel("nodes")
        panel.grid(color="0.9")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _by_link(points: Sequence[Point]) -> Iterator[tuple[list[Point], dict[str, Any]]]:
    """The points of each link and its line. Later lines are thinner: those below stay visible."""
    links = list(dict.fromkeys(point.cluster.network.link_gbit for point in points))
    for index, link in enumerate(links):
        style = {
            "color": LINES[index % len(LINES)],
            "linestyle": DASHES[index % len(DASHES)],
            "linewidth": max(1.2, 3.2 - 0.6 * index),
            "marker": ".",
            "label": f"{link:g} Gbit/s",
        }
        yield [p for p in points if p.cluster.network.link_gbit == link], style


def _draw_band(
    panel: Axes, curve: Sequence[tuple[int, Ends[float]]], style: dict[str, Any]
) -> None:
    hosts = [x for x, _ends in curve]
    fast, slow = [ends.fast for _x, ends in curve], [ends.slow for _x, ends in curve]
    panel.fill_between(hosts, slow, fast, color=style["color"], alpha=0.12, linewidth=0)
    panel.plot(hosts, fast, **{**style, "label": None})
    panel.plot(hosts, slow, **style)


def _draw_efficiency(panel: Axes, points: Sequence[Point], setting: Setting) -> None:
    from matplotlib.ticker import PercentFormatter

    highest = 1.0
    for own, style in _by_link(points):
        curve = [
            (point.cluster.hosts, phase.step.map(lambda step: step.efficiency))
            for point in own
            for phase in point.phases
            if phase.setting == setting
        ]
        highest = max(highest, *(low_high(ends)[1] for _hosts, ends in curve))
        _draw_band(panel, curve, style)
    panel.set_title(
        f"{setting.image_size} px, {setting.batch * setting.accumulate} per rank",
        fontsize="medium",
    )
    panel.set_ylim(0, 1.04 * highest)
    panel.axhline(0.9, color="0.7", linewidth=0.8, linestyle=":")
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_ylabel("scaling efficiency")


def _draw_hours(panel: Axes, points: Sequence[Point]) -> None:
    from matplotlib.ticker import StrMethodFormatter

    for own, style in _by_link(points):
        hours = [(p.cluster.hosts, p.seconds.map(lambda s: s / 3600)) for p in own]
        _draw_band(panel, hours, style)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.set_title("the whole plan", fontsize="medium")
    panel.set_ylabel("hours of training")
