"""Training speed by phase: by image size and global batch size."""

from __future__ import annotations

from dataclasses import dataclass

from hvdtrain.report.events import number, whole
from hvdtrain.report.run import Point, RunRecord


@dataclass(frozen=True)
class PhaseSpeed:
    """All training intervals at one image size and global batch; images/s of all ranks."""

    image_size: int | None
    global_batch_size: int | None
    first_epoch: float
    last_epoch: float
    images: float
    seconds: float
    images_per_second: float | None
    efficiency: float | None
    ratios: dict[str, float]
    """Shares of the time by name (`data_wait`, …), weighted by time."""


def ratio_names(run: RunRecord) -> list[str]:
    """Shares of time that the training intervals have, without their `_ratio`."""
    names = {key: None for point in run.train for key in point.values if key.endswith("_ratio")}
    return [
        key.removesuffix("_ratio")
        for key in names
        if all(-1 <= (number(p.values, key) or 0.0) <= 1 for p in run.train)
    ]


def phase_speeds(run: RunRecord) -> list[PhaseSpeed]:
    """Speed at each image size and global batch, in the order of the run."""
    parts: dict[tuple[int | None, int | None], list[Point]] = {}
    for point in run.train:
        key = (whole(point.values, "image_size"), whole(point.values, "global_batch_size"))
        parts.setdefault(key, []).append(point)
    names = ratio_names(run)
    return [_phase_speed(key, points, names) for key, points in parts.items()]


def overall_efficiency(phases: list[PhaseSpeed]) -> float | None:
    """Efficiency of all phases, weighted by time."""
    return _mean([(phase.efficiency, phase.seconds) for phase in phases])


def _phase_speed(
    key: tuple[int | None, int | None], points: list[Point], names: list[str]
) -> PhaseSpeed:
    seconds = sum(point.seconds for point in points)
    images = sum(number(point.values, "samples") or 0.0 for point in points)
    ratios = {}
    for name in names:
        ratio = _mean([(number(p.values, f"{name}_ratio"), p.seconds) for p in points])
        if ratio is not None:
            ratios[name] = ratio
    return PhaseSpeed(
        image_size=key[0],
        global_batch_size=key[1],
        first_epoch=points[0].began_at,
        last_epoch=points[-1].epoch,
        images=images,
        seconds=seconds,
        images_per_second=images / seconds if images and seconds else None,
        efficiency=_efficiency(points),
        ratios=ratios,
    )


def _efficiency(points: list[Point]) -> float | None:
    """Efficiency of a phase: that of its intervals, weighted by time.

    Runs of older versions have the efficiency of the phase so far in each interval, which begins
    again with each attempt. So the last one of an attempt counts for all its intervals.
    """
    values = [(number(p.values, "efficiency"), p.seconds) for p in points]
    if any("efficiency_so_far" in point.values for point in points):
        return _mean(values)
    last: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for point, (value, interval_s) in zip(points, values, strict=True):
        if value is not None:
            last[point.attempt] = value
            seconds[point.attempt] = seconds.get(point.attempt, 0.0) + interval_s
    return _mean([(last[attempt], seconds[attempt]) for attempt in last])


def _mean(values: list[tuple[float | None, float]]) -> float | None:
    """Mean of the known values, each with its weight; None where all weights are 0."""
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _value, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
