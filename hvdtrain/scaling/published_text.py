"""What `hvdtrain scaling published` prints, as Markdown."""

from __future__ import annotations

from hvdtrain.scaling import published
from hvdtrain.scaling.ends import Ends, between, low_high


def published_text() -> str:
    """All tables, and the predictions that fit into none."""
    return "\n\n".join([_clusters(), _boxes(), _diux(), "\n".join(_more())])


def _inside(value: float, ends: Ends[float], points: bool = False) -> str:
    """`yes`, or how far the value is outside the range: in points, or relative to the nearer end."""
    low, high = low_high(ends)
    if low <= value <= high:
        return "yes"
    near = low if value < low else high
    return f"{100 * (value - near):+.1f}" if points else f"{value / near - 1:+.1%}"


def _clusters() -> str:
    lines = ["| measured by | published | predicted | inside |", "|---|---|---|---|"]
    for point in published.published():
        predicted = point.predicted()
        lines.append(
            f"| {point.name} | {point.efficiency:.0%} | {between(predicted, '.1f', '%', 100)} "
            f"| {_inside(point.efficiency, predicted, True)} |"
        )
    return "\n".join(lines)


def _boxes() -> str:
    lines = [
        "| eight GPUs of one machine | images/s | lost in a step | efficiency | predicted | inside |",
        "|---|---|---|---|---|---|",
    ]
    for box in published.BOXES:
        predicted = box.predicted()
        lost_s = 8 * box.batch / box.eight - box.batch / box.one
        lines.append(
            f"| {box.name} | {box.eight:,.0f} | {1e3 * lost_s:.1f} ms | {box.efficiency:.1%} "
            f"| {between(predicted, '.1f', '%', 100)} | {_inside(box.efficiency, predicted, True)} |"
        )
    return "\n".join(lines)


def _diux() -> str:
    lines = [
        "| DIUx, 8×8, 25 Gbit TCP | logged ms | predicted | range | inside | from one GPU | range | inside |",
        "|---|---|---|---|---|---|---|---|",
    ]
    both = zip(published.diux(), published.diux_from_one_gpu(), strict=True)
    for (step, fitted, predicted), (_same, single) in both:
        cells = ["fitted", "", ""] if fitted else _range(step.median_s, predicted)
        cells = [
            f"{step.image_size} px, {step.batch} images",
            f"{1e3 * step.median_s:g}",
            *cells,
            *_range(step.median_s, single),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(measured: float, predicted: Ends[float]) -> list[str]:
    width = f"±{published.half_width(predicted):.0%}"
    return [between(predicted, ".1f", factor=1e3), width, _inside(measured, predicted)]


def _more() -> list[str]:
    low, high = published.DIUX_SENT_MB
    by_latency = ", ".join(
        f"{us} µs {between(value, '.0f', '%', 100)}"
        for us, value in published.goyal_by_latency().items()
    )
    larger = ", ".join(
        f"{step.image_size} px {between(ends, '.0f', factor=1e3)} for {1e3 * step.median_s:g} ms"
        for step, ends in published.diux_larger_from_smaller()
    )
    return [
        f"DIUx 8×8, the fitted steps from the smaller batch instead: {larger}",
        f"DIUx 8×8, MB that a host sends per step: {low}–{high} logged, "
        f"{published.traffic_per_step():.1f} predicted",
        "DIUx 4×8, 224 px, 224 images: two steps of 318 and 336 ms in its README, "
        f"{between(published.diux_on_four_hosts(), '.0f', factor=1e3)} predicted",
        f"Goyal et al., predicted at other latencies: {by_latency}",
        "VGG-16, 32×4, predicted speed over RDMA: "
        f"{between(published.rdma_over_tcp(), '.2f', '×')} that over TCP",
    ]
