"""Predictions, advice and comparisons as plain tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hvdtrain.scaling.compare import Comparison
from hvdtrain.scaling.predict import Advice, Point, Setting
from hvdtrain.scaling.published import Published

Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """A table with two spaces between columns; all columns except the first are right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def prediction_text(points: Sequence[Point], advice: Sequence[Advice], target: float) -> str:
    """A table per image size and batch, one of the whole plan, and one of what reaches `target`."""
    blocks = []
    settings = list(dict.fromkeys(p.setting for point in points for p in point.phases))
    for setting in settings:
        guessed = any(p.guessed for point in points for p in point.phases if p.setting == setting)
        note = ", time by the number of pixels" if guessed else ""
        blocks.append(f"{_name(setting)}{note}\n{_setting_table(points, setting)}")
    blocks.append(f"the whole plan, training only\n{_plan_table(points)}")
    if advice:
        hosts = advice[0].cluster.hosts
        blocks.append(f"what {target:.0%} on {hosts} nodes needs\n{_advice_table(advice)}")
    return "\n\n".join(blocks)


def _name(setting: Setting) -> str:
    micro = f"{setting.accumulate} × " if setting.accumulate > 1 else ""
    return f"{setting.image_size} px, {micro}{setting.batch} images per rank"


def _setting_table(points: Sequence[Point], setting: Setting) -> str:
    head = ("nodes", "GPUs", "Gbit/s", "step ms", "exposed ms", "late ms", "efficiency", "images/s")
    rows = []
    for point in points:
        for phase in point.phases:
            if phase.setting == setting:
                step = phase.step
                rows.append(
                    (
                        *_where(point),
                        *(f"{1e3 * s:.1f}" for s in (step.seconds, step.exposed_s, step.late_s)),
                        f"{step.efficiency:.1%}",
                        f"{phase.images_per_s:,.0f}",
                    )
                )
    return table(head, rows)


def _plan_table(points: Sequence[Point]) -> str:
    priced = any(point.dollars is not None for point in points)
    head = ["nodes", "GPUs", "Gbit/s", "hours", "days", "efficiency"] + ["dollars"] * priced
    rows = []
    for point in points:
        hours = point.seconds / 3600
        row = [*_where(point), f"{hours:.2f}", f"{hours / 24:.2f}", f"{point.efficiency:.1%}"]
        rows.append(row + ([] if point.dollars is None else [f"{point.dollars:,.2f}"]))
    return table(head, rows)


def _where(point: Point) -> tuple[str, str, str]:
    cluster = point.cluster
    return str(cluster.hosts), str(cluster.ranks), f"{cluster.network.link_gbit:g}"


def _advice_table(advice: Sequence[Advice]) -> str:
    head = ("phase", "Gbit/s", "now", "batch ≥", "or accumulate ≥", "or Gbit/s ≥")
    rows = [
        (
            _name(a.setting),
            f"{a.cluster.network.link_gbit:g}",
            f"{a.efficiency:.1%}",
            _or_none(a.batch),
            _or_none(a.accumulate),
            "none" if a.link_gbit is None else f"{a.link_gbit:.1f}",
        )
        for a in advice
    ]
    return table(head, rows)


def _or_none(number: int | None) -> str:
    return "none" if number is None else str(number)


def prediction_dict(points: Sequence[Point], advice: Sequence[Advice]) -> dict[str, Any]:
    """The same for programs: times in seconds, sizes in bytes, shares in 0-1."""
    return {
        "points": [
            {
                "nodes": point.cluster.hosts,
                "ranks": point.cluster.ranks,
                "link_gbit": point.cluster.network.link_gbit,
                "train_seconds": point.seconds,
                "efficiency": point.efficiency,
                "dollars": point.dollars,
                "phases": [
                    {
                        "image_size": phase.setting.image_size,
                        "batch": phase.setting.batch,
                        "accumulate": phase.setting.accumulate,
                        "step_s": phase.step.seconds,
                        "alone_s": phase.step.compute_s,
                        "exposed_s": phase.step.exposed_s,
                        "late_s": phase.step.late_s,
                        "efficiency": phase.step.efficiency,
                        "images_per_s": phase.images_per_s,
                        "link_share": phase.link_share,
                        "guessed": phase.guessed,
                    }
                    for phase in point.phases
                ],
            }
            for point in points
        ],
        "advice": [
            {
                "nodes": a.cluster.hosts,
                "link_gbit": a.cluster.network.link_gbit,
                "image_size": a.setting.image_size,
                "batch": a.setting.batch,
                "accumulate": a.setting.accumulate,
                "efficiency": a.efficiency,
                "needed_batch": a.batch,
                "needed_accumulate": a.accumulate,
                "needed_link_gbit": a.link_gbit,
            }
            for a in advice
        ],
    }


def published_text(points: Sequence[Published]) -> str:
    """Published and predicted efficiency, as Markdown."""
    lines = ["| measured by | published | predicted | difference |", "|---|---|---|---|"]
    for point in points:
        predicted = point.predicted()
        lines.append(
            f"| {point.name} | {point.efficiency:.0%} | {predicted:.1%} "
            f"| {100 * (predicted - point.efficiency):+.1f} |"
        )
    return "\n".join(lines)


def comparison_text(comparisons: Sequence[Comparison]) -> str:
    """Measured and predicted steps, as Markdown."""
    lines = [
        "| setting | hosts × ranks | Gbit/s | wire | allreduce: ms + MB/s | compute ms | measured ms "
        "| predicted ms | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        m = c.measured
        lines.append(
            f"| {m.label or m.model} | {m.hosts} × {m.ranks_per_host} | {m.link_gbit:g} "
            f"| {m.compression} | {1e3 * c.latency_s:.2f} + {c.bytes_per_s / 1e6:.0f} "
            f"| {1e3 * m.compute_s:.1f} | {1e3 * m.step_s:.1f} | {1e3 * c.predicted_s:.1f} "
            f"| {c.error:+.1%} |"
        )
    return "\n".join(lines)
