"""The noise scale that a run has recorded while it trained, over its updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import number, whole
from hvdtrain.report.run import Point, RunRecord, read_run

SMALLEST, LARGEST = 1e-6, 1e15
"""Of any noise scale, and of any number, in a log that is not damaged."""


@dataclass(frozen=True)
class Interval:
    """One report of the run."""

    epoch: float
    """Epochs done, with the fraction of the present one."""
    step: float
    """Updates since the run began; `updates` are those of this interval."""
    updates: float
    phase: int
    image_size: int
    batch: int
    """Global, in images."""
    seconds: float
    """Of training steps."""
    scale: float | None
    """In images, averaged over the last 50 measurements; None where the noise hid the signal."""


@dataclass(frozen=True)
class Part:
    """A part of a run: mean and standard deviation of the recorded values, weighted by updates."""

    name: str
    updates: float
    known: float
    """Share of the updates with a noise scale, 0-1."""
    mean: float
    deviation: float
    low: float
    high: float
    """Lowest and highest value."""
    batch: float
    """Mean global batch."""

    @property
    def batch_over_noise(self) -> float:
        """Below 1 a larger batch pays; far above 1 it wastes images."""
        return self.batch / self.mean

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return {**asdict(self), "batch_over_noise": self.batch_over_noise}


@dataclass(frozen=True)
class Recorded:
    """What one run has recorded; at least one interval has a noise scale."""

    name: str
    intervals: list[Interval]

    @property
    def known(self) -> float:
        """Share of the updates with a noise scale, 0-1."""
        return _updates(self.measured) / _updates(self.intervals)

    @property
    def seconds(self) -> float:
        """Time of its training steps."""
        return sum(each.seconds for each in self.intervals)

    @property
    def measured(self) -> list[Interval]:
        """The intervals with a noise scale."""
        return [each for each in self.intervals if each.scale is not None]

    def parts(self) -> list[Part]:
        """The whole run, its quarters by updates, and its phases if there are several."""
        parts = [_part("all", self.intervals)]
        end = self.intervals[-1].step
        for quarter in range(4):
            inside = [
                each
                for each in self.intervals
                if quarter == min(3, int(4 * (each.step - each.updates / 2) / end))
            ]
            parts.append(_part(f"quarter {quarter + 1}", inside))
        phases = sorted({each.phase for each in self.intervals})
        if len(phases) > 1:
            parts += [
                _part(f"phase {phase}", [each for each in self.intervals if each.phase == phase])
                for phase in phases
            ]
        return [part for part in parts if part is not None]

    def last_quarter(self) -> Part:
        """The last of the quarters with a value."""
        return [part for part in self.parts() if part.name.startswith("quarter")][-1]


def _updates(intervals: Sequence[Interval]) -> float:
    return sum(each.updates for each in intervals)


def _part(name: str, intervals: Sequence[Interval]) -> Part | None:
    measured = [each for each in intervals if each.scale is not None]
    if not measured:
        return None
    total, updates = _updates(intervals), _updates(measured)
    scales = [each.scale or 0.0 for each in measured]
    mean = sum(s * each.updates for s, each in zip(scales, measured, strict=True)) / updates
    variance = sum(
        (s - mean) * (s - mean) * e.updates for s, e in zip(scales, measured, strict=True)
    )
    return Part(
        name,
        total,
        updates / total,
        mean,
        math.sqrt(variance / updates),
        min(scales),
        max(scales),
        sum(each.batch * each.updates for each in intervals) / total,
    )


def read_recorded(root: Path) -> Recorded:
    """What the run directory `root` has recorded.

    Raises ResourceError if it is no run directory, has no events, or no noise scale, and says why and what to
    do instead.
    """
    if RunPaths(root).config.is_file() and not RunPaths(root).events.is_file():
        raise ResourceError(
            f"{root}: no noise scale is recorded: it has no events.jsonl: {_instead(root)}"
        )
    run = read_run(root)
    found = Recorded(run.label, _intervals(run.train))
    if not found.measured:
        raise ResourceError(_missing(root, run, found))
    return found


def _intervals(points: Sequence[Point]) -> list[Interval]:
    """Those with the numbers that are needed: old and damaged logs may lack some."""
    found, before = [], 0.0
    for point in points:
        values = point.values
        step, batch = number(values, "step"), whole(values, "global_batch_size")
        size, phase = whole(values, "image_size"), number(values, "phase") or 0.0
        if step is None or batch is None or size is None or step < before + 1:
            continue
        scale = number(values, "gradient_noise_scale")
        if max(step, batch, size, phase, scale or 0.0, point.seconds) > LARGEST:
            continue
        found.append(
            Interval(
                *(point.epoch, step, step - before, int(phase)),
                *(
                    size,
                    batch,
                    point.seconds,
                    scale if scale is not None and scale > SMALLEST else None,
                ),
            )
        )
        before = step
    return found


def _instead(root: Path) -> str:
    newest = list_checkpoints(RunPaths(root).checkpoints)[:1]
    place = newest[0] if newest else f"{root}/checkpoints/NAME"
    return f"measure it at a checkpoint: hvdtrain study noise-scale {place}"


def _missing(root: Path, run: RunRecord, found: Recorded) -> str:
    instead = _instead(root)
    train = run.config.get("train")
    train = train if isinstance(train, dict) else {}
    ranks = run.attempts[-1].world_size
    if not found.intervals:
        return f"{root}: no training step is recorded: {instead}"
    if train.get("noise_scale_every") == 0:
        return f"{root}: no noise scale is recorded: train.noise_scale_every is 0: {instead}"
    comm = run.config.get("comm")
    if isinstance(comm, dict) and comm.get("compression") == "powersgd":
        return (
            f"{root}: no noise scale is recorded: with comm.compression: powersgd no rank has the mean "
            f"gradient: {instead}"
        )
    if ranks == 1 and train.get("accumulate", 1) == 1:
        return (
            f"{root}: no noise scale is recorded: that needs two batch sizes in an update, so 2 ranks or "
            f"train.accumulate 2, and this run has one of each: {instead}"
        )
    return (
        f"{root}: no noise scale is recorded: the noise hid the signal in every report, or none was "
        f"measured: {instead}"
    )
