"""Curves of a run after each evaluation or epoch, and the mean of the curves of several runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hvdtrain.report.events import number
from hvdtrain.report.run import Point, RunRecord


@dataclass(frozen=True)
class Curve:
    """Values after each epoch (evaluation), with the epochs, updates and seconds of training so far."""

    epochs: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def curve_of(points: list[Point], key: str) -> Curve:
    """The values of `key` that the points have."""
    kept = [(point, value) for point in points if (value := number(point.values, key)) is not None]
    return Curve(
        [point.epoch for point, _ in kept],
        [number(point.values, "step") or 0.0 for point, _ in kept],
        [point.train_s for point, _ in kept],
        [value for _, value in kept],
    )


def epochs_of(run: RunRecord) -> dict[int, tuple[float, float]]:
    """Mean training loss and seconds of each whole epoch, by its number from 1."""
    sums: dict[int, list[float]] = {}
    for point in run.train:
        each = sums.setdefault(math.ceil(point.epoch - 1e-9), [0.0, 0.0, 0.0])
        loss, images = number(point.values, "loss"), number(point.values, "samples") or 0.0
        if loss is not None:
            each[0] += loss * images
            each[1] += images
        each[2] += point.seconds
    last = run.train[-1].epoch if run.train else 0.0
    return {
        epoch: (loss / images, seconds)
        for epoch, (loss, images, seconds) in sums.items()
        if images and epoch <= last + 1e-9
    }


def curve_by_epoch(run: RunRecord, values: Mapping[int, float | None]) -> Curve:
    """Values by the number of their epoch from 1, of the epochs that the run has completed."""
    steps, seconds = _ends(run)
    kept = [(e, v) for e, v in sorted(values.items()) if v is not None and e in steps]
    return Curve(
        [float(epoch) for epoch, _ in kept],
        [steps[epoch] for epoch, _ in kept],
        [seconds[epoch] for epoch, _ in kept],
        [value for _, value in kept],
    )


def _ends(run: RunRecord) -> tuple[dict[int, float], dict[int, float]]:
    """Updates and seconds of training at the end of each epoch."""
    ends = [point for point in run.train if abs(point.epoch - round(point.epoch)) < 1e-9]
    steps = {round(p.epoch): number(p.values, "step") or 0.0 for p in ends}
    return steps, {round(point.epoch): point.train_s for point in ends}


def mean_curve(curves: Sequence[Curve]) -> tuple[Curve, list[float]]:
    """The mean at the epochs that all curves have, and the standard deviations (n - 1) of the values.

    These are 0 for a single curve.
    """
    tables = [
        {round(row[0], 6): row for row in zip(c.epochs, c.steps, c.seconds, c.values, strict=True)}
        for c in curves
    ]
    shared = [epoch for epoch in tables[0] if all(epoch in t for t in tables)] if tables else []
    mean, deviations = Curve(), []
    for epoch in shared:
        columns = list(zip(*(table[epoch] for table in tables), strict=True))
        for values, column in zip(vars(mean).values(), columns, strict=True):
            values.append(statistics.fmean(column))
        deviations.append(statistics.stdev(columns[-1]) if len(tables) > 1 else 0.0)
    return mean, deviations
