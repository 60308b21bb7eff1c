"""Plots a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hvdtrain.errors import ResourceError
from hvdtrain.scaling.predict import Point


def plot(points: Sequence[Point], path: Path, title: str) -> None:
    """Plot efficiency over nodes for each image size and batch, and the hours of the plan.

    There is one line for each link. Raises ResourceError if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    settings = list(dict.fromkeys(p.setting for point in points for p in point.phases))
    links = list(dict.fromkeys(point.cluster.network.link_gbit for point in points))
    panels = len(settings) + 1
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for setting, panel in zip(settings, axes, strict=False):
        for link in links:
            curve = [
                (point.cluster.hosts, phase.step.efficiency)
                for point in points
                for phase in point.phases
                if point.cluster.network.link_gbit == link and phase.setting == setting
            ]
            panel.plot(*zip(*curve, strict=True), marker=".", label=f"{link:g} Gbit/s")
        panel.set_title(
            f"{setting.image_size} px, {setting.batch * setting.accumulate} per rank",
            fontsize="medium",
        )
        panel.set_ylim(0, 1.02)
        panel.axhline(0.9, color="0.7", linewidth=0.8, linestyle=":")
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.set_ylabel("scaling efficiency")
    for link in links:
        own = [p for p in points if p.cluster.network.link_gbit == link]
        axes[-1].plot([p.cluster.hosts for p in own], [p.seconds / 3600 for p in own], marker=".")
    axes[-1].set_yscale("log")
    axes[-1].set_title("the whole plan", fontsize="medium")
    axes[-1].set_ylabel("hours of training")
    nodes = sorted({point.cluster.hosts for point in points})
    for panel in axes:
        panel.set_xscale("log", base=2)
        panel.set_xticks(nodes)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.set_xlabel("nodes")
        panel.grid(color="0.9")
    axes[0].legend(fontsize="small", loc="lower left")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:  # the latter: a format that matplotlib does not know
        raise ResourceError(f"--plot {path}: cannot be written: {error}") from None
