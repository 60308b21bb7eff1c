"""Predictions, advice and comparisons as plain tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from hvdtrain.scaling.compare import Comparison
from hvdtrain.scaling.ends import Ends, between, keys, low_high
from hvdtrain.scaling.overlap import Step, straggler
from hvdtrain.scaling.predict import Advice, Point, Setting
from hvdtrain.scaling.profile import BY_PIXELS, FIXED

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


def prediction_text(
    points: Sequence[Point], advice: Sequence[Ends[Advice]], target: float, sigma: Ends[float]
) -> str:
    """A table per image size and batch, one of the whole plan, one of what reaches `target`, and notes."""
    blocks = []
    settings = list(dict.fromkeys(p.setting for point in points for p in point.phases))
    for setting in settings:
        guessed = any(p.guessed for point in points for p in point.phases if p.setting == setting)
        note = ", time by the number of pixels" if guessed else ""
        blocks.append(f"{_name(setting)}{note}\n{_setting_table(points, setting)}")
    blocks.append(f"the whole plan, training only\n{_plan_table(points)}")
    if advice:
        hosts = advice[0].fast.cluster.hosts
        blocks.append(f"what {target:.0%} on {hosts} nodes needs\n{_advice_table(advice)}")
    blocks.append("\n".join(notes(points, sigma, target)))
    return "\n\n".join(blocks)


def notes(points: Sequence[Point], sigma: Ends[float], target: float) -> list[str]:
    """What the ranges are made of; what late ranks allow if they cost most somewhere, or rule out `target`; and
    what is not counted."""
    network = points[0].cluster.network
    share = Ends(network.efficiency, network.least_efficiency or network.efficiency)
    most = "" if network.most_gbit == inf else f", {network.most_gbit:g} Gbit/s at most"
    phases = [phase for point in points for phase in point.phases]
    lines = [
        f"from–to: gradients get {between(share, '.0f', '%', 100)} of a link{most} (--efficiency), the step times "
        f"of a rank spread by {between(sigma, '.3g', '%', 100)} (--straggler)"
    ]
    if any(phase.step.fast.compute_s != phase.step.slow.compute_s for phase in phases):
        lines.append(
            f"from–to: a step whose batch or image size was not measured keeps {between(FIXED, '.0f', '%', 100)} of "
            f"the measured time, the rest follows the images, and the pixels to ±{BY_PIXELS:.0%}"
        )
    ranks = max(point.cluster.ranks for point in points)
    allowed = late_ranks_allow(ranks, sigma)
    if allowed.slow < target or any(lost_to(phase.step) != "gradients" for phase in phases):
        lines.append(
            f"late ranks: by that spread alone {ranks:,} GPUs reach at most "
            f"{between(allowed, '.1f', '%', 100)}, with any link and any batch"
        )
    per_node = max(
        low_high(phase.images_per_s)[1] / point.cluster.hosts
        for point in points
        for phase in point.phases
    )
    lines.append(
        "not counted: evaluation, start, and waiting for images: a node must read and decode "
        f"{per_node:,.0f} images/s (docs/explanation/scaling.md, One machine, says what that can cost)"
    )
    return lines


def late_ranks_allow(ranks: int, sigma: Ends[float]) -> Ends[float]:
    """The efficiency (0-1) that is left if waiting for the slowest rank is the only loss."""
    return sigma.map(lambda s: 1 / straggler(ranks, s))


def lost_to(step: Ends[Step]) -> str:
    """What costs most: `gradients` that are exposed, `late ranks`, or either of them, by the end."""
    fast, slow = step.map(lambda s: "late ranks" if s.late_s > s.exposed_s else "gradients").pair()
    if step.slow.seconds == step.slow.compute_s:
        return "-"
    return fast if fast == slow else "either"


def _name(setting: Setting) -> str:
    micro = f"{setting.accumulate} × " if setting.accumulate > 1 else ""
    return f"{setting.image_size} px, {micro}{setting.batch} images per rank"


def _setting_table(points: Sequence[Point], setting: Setting) -> str:
    head = (
        *("nodes", "GPUs", "Gbit/s", "step ms", "exposed ms", "late ms", "efficiency"),
        *("images/s", "lost most to"),
    )
    rows = []
    for point in points:
        for phase in point.phases:
            if phase.setting == setting:
                step = phase.step
                parts = (
                    step.map(lambda s: s.seconds),
                    step.map(lambda s: s.exposed_s),
                    step.map(lambda s: s.late_s),
                )
                rows.append(
                    (
                        *_where(point),
                        *(between(part, ".1f", factor=1e3) for part in parts),
                        between(step.map(lambda s: s.efficiency), ".1f", "%", 100),
                        between(phase.images_per_s, ",.0f"),
                        lost_to(step),
                    )
                )
    return table(head, rows)


def _plan_table(points: Sequence[Point]) -> str:
    priced = any(point.dollars is not None for point in points)
    head = ["nodes", "GPUs", "Gbit/s", "hours", "days", "efficiency"] + ["dollars"] * priced
    rows = []
    for point in points:
        times = [between(point.seconds, ".2f", factor=1 / unit) for unit in (3600, 86400)]
        row = [*_where(point), *times, between(point.efficiency, ".1f", "%", 100)]
        rows.append(row + ([] if point.dollars is None else [between(point.dollars, ",.2f")]))
    return table(head, rows)


def _where(point: Point) -> tuple[str, str, str]:
    cluster = point.cluster
    return str(cluster.hosts), str(cluster.ranks), f"{cluster.network.link_gbit:g}"


def _advice_table(advice: Sequence[Ends[Advice]]) -> str:
    head = ("phase", "Gbit/s", "now", "batch ≥", "or accumulate ≥", "or Gbit/s ≥")
    rows = [
        (
            _name(a.fast.setting),
            f"{a.fast.cluster.network.link_gbit:g}",
            between(a.map(lambda end: end.efficiency), ".1f", "%", 100),
            _needed(a.map(lambda end: end.batch), "d"),
            _needed(a.map(lambda end: end.accumulate), "d"),
            _needed(a.map(lambda end: end.link_gbit), ".1f"),
        )
        for a in advice
    ]
    return table(head, rows)


def _needed(ends: Ends[int | None] | Ends[float | None], form: str) -> str:
    """What is enough at the fast end, and at both."""
    fast, slow = ("none" if n is None else format(n, form) for n in ends.pair())
    return fast if fast == slow else f"{fast}–{slow}"


def prediction_dict(
    points: Sequence[Point], advice: Sequence[Ends[Advice]], target: float, sigma: Ends[float]
) -> dict[str, Any]:
    """The same for programs: times in seconds, sizes in bytes, shares in 0-1."""
    return {
        "points": [_point_dict(point, sigma) for point in points],
        "advice": [_advice_dict(a) for a in advice],
        "notes": notes(points, sigma, target),
    }


def _point_dict(point: Point, sigma: Ends[float]) -> dict[str, Any]:
    return {
        "nodes": point.cluster.hosts,
        "ranks": point.cluster.ranks,
        "link_gbit": point.cluster.network.link_gbit,
        **keys("train_seconds", point.seconds),
        **keys("efficiency", point.efficiency),
        **keys("dollars", point.dollars),
        **keys("late_ranks_allow", late_ranks_allow(point.cluster.ranks, sigma)),
        "phases": [
            {
                "image_size": phase.setting.image_size,
                "batch": phase.setting.batch,
                "accumulate": phase.setting.accumulate,
                **keys("step_s", phase.step.map(lambda s: s.seconds)),
                **keys("alone_s", phase.step.map(lambda s: s.compute_s)),
                **keys("exposed_s", phase.step.map(lambda s: s.exposed_s)),
                **keys("late_s", phase.step.map(lambda s: s.late_s)),
                **keys("efficiency", phase.step.map(lambda s: s.efficiency)),
                **keys("images_per_s", phase.images_per_s),
                **keys("link_share", phase.link_share),
                "lost_most_to": lost_to(phase.step),
                "guessed": phase.guessed,
            }
            for phase in point.phases
        ],
    }


def _advice_dict(advice: Ends[Advice]) -> dict[str, Any]:
    """`fast` and `slow`: what is enough at that end; null: nothing is."""
    setting, cluster = advice.fast.setting, advice.fast.cluster
    return {
        "nodes": cluster.hosts,
        "link_gbit": cluster.network.link_gbit,
        "image_size": setting.image_size,
        "batch": setting.batch,
        "accumulate": setting.accumulate,
        **{
            name: {
                "efficiency": end.efficiency,
                "needed_batch": end.batch,
                "needed_accumulate": end.accumulate,
                "needed_link_gbit": end.link_gbit,
            }
            for name, end in (("fast", advice.fast), ("slow", advice.slow))
        },
    }


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
