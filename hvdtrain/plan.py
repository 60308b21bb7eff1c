"""Config × world size → the whole run as arithmetic: epochs, steps, sizes, batches, rates.

Pure: needs neither torch nor Horovod nor the images, so `hvdtrain plan` answers on a laptop.
Everything is a function of samples seen, so it does not change when a run is resumed with
another number of workers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hvdtrain.config import Config, LearningRate, Phase
from hvdtrain.errors import ConfigError

PLAIN_SGD_BATCH_LIMIT = 8192
"""Largest batch at which plain SGD kept its accuracy. Source: Goyal et al. 2017, fig. 1."""


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: whole epochs, and samples of the next one (all ranks together)."""

    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch (or what is left of it): sizes are per rank unless named global."""

    index: int
    phase_index: int
    first_of_phase: int
    phase: Phase
    rates: LearningRate
    total_epochs: int
    accumulate: int
    world_size: int
    num_samples: int
    momentum_value: float
    start: int = 0

    @property
    def image_size(self) -> int:
        """Side of training images in pixels."""
        return self.phase.image_size

    @property
    def val_image_size(self) -> int:
        """Side of evaluation images in pixels."""
        return self.phase.val_image_size or self.phase.image_size

    @property
    def rect_val(self) -> bool:
        """Whether evaluation images are rectangles of like shape, not squares."""
        return self.phase.rect_val

    @property
    def min_crop_area(self) -> float:
        """Smallest share of an image's area kept by a random crop."""
        return self.phase.min_crop_area

    @property
    def crop_aspect(self) -> list[float] | None:
        """Smallest and largest width/height of a random crop; None: those of the dataset."""
        return self.phase.crop_aspect

    @property
    def interpolation(self) -> str:
        """Filter of all resizing: bilinear or bicubic."""
        return self.phase.interpolation

    @property
    def batch_per_worker(self) -> int:
        """Images of one forward pass on one rank."""
        return self.phase.batch_per_worker

    @property
    def global_batch_size(self) -> int:
        """Images of one update, all ranks and micro-batches together."""
        return self.batch_per_worker * self.accumulate * self.world_size

    @property
    def steps(self) -> int:
        """Updates left in this epoch; the last one may hold fewer than a whole batch."""
        return math.ceil((self.num_samples - self.start) / self.global_batch_size)

    def samples_after(self, i: int) -> int:
        """Samples of this epoch consumed once step `i` of those left is done."""
        return min(self.start + (i + 1) * self.global_batch_size, self.num_samples)

    def position_after(self, i: int) -> Position:
        """Where the run stands once step `i` is done; the next epoch's start after the last."""
        consumed = self.samples_after(i)
        whole = consumed == self.num_samples
        return Position(self.index + 1, 0) if whole else Position(self.index, consumed)

    def lr(self, i: int) -> float:
        """Learning rate of step `i` of those left in this epoch."""
        consumed = self.start + i * self.global_batch_size
        return self.lr_at(self.index + consumed / self.num_samples)

    def lr_at(self, t: float) -> float:
        """Learning rate at `t` epochs since the start of the run, at this epoch's batch."""
        scale = lr_scale(self.rates, self.global_batch_size)
        if self.phase.lr is not None:
            return scale * _phase_lr(self.phase, t - self.first_of_phase)
        target = self.rates.base * scale * _shape(self.rates, t, self.total_epochs)
        return _warmed(self.rates, target, t)

    def momentum(self, i: int) -> float:
        """Momentum (β1 of LAMB and AdamW) of step `i`."""
        return self.momentum_value

    def should_log(self, i: int, every: int) -> bool:
        """True at every `every`-th step of the epoch, and at its last."""
        return (i + 1) % every == 0 or i + 1 == self.steps


@dataclass(frozen=True)
class Plan:
    """All epochs of a run at one world size."""

    epochs: tuple[Epoch, ...]
    world_size: int
    num_samples: int

    def epochs_from(self, position: Position) -> Iterator[Epoch]:
        """The epochs left after `position`; the first of them may be partial."""
        for epoch in self.epochs[position.epoch :]:
            start = position.sample if epoch.index == position.epoch else 0
            yield replace(epoch, start=start)

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return sum(epoch.steps for epoch in self.epochs)

    @property
    def phases(self) -> list[list[Epoch]]:
        """The epochs, grouped by phase."""
        groups: dict[int, list[Epoch]] = {}
        for epoch in self.epochs:
            groups.setdefault(epoch.phase_index, []).append(epoch)
        return list(groups.values())


def make_plan(cfg: Config, world_size: int, num_samples: int | None = None) -> Plan:
    """The plan of `cfg` on `world_size` ranks over `num_samples` images (data.train_size if None).

    Raises ConfigError if the dataset's size is unknown or smaller than a global batch.
    """
    samples = cfg.data.train_size if num_samples is None else num_samples
    if samples is None:
        raise ConfigError(
            "data.train_size: unknown number of training images: set it, or point data.train to them"
        )
    epochs: list[Epoch] = []
    total = sum(phase.epochs for phase in cfg.phases)
    for phase_index, phase in enumerate(cfg.phases):
        first = len(epochs)
        first_epoch = Epoch(
            index=first,
            phase_index=phase_index,
            first_of_phase=first,
            phase=phase,
            rates=cfg.lr,
            total_epochs=total,
            accumulate=cfg.train.accumulate,
            world_size=world_size,
            num_samples=samples,
            momentum_value=cfg.optimizer.first_momentum,
        )
        _check_batch(first_epoch)
        epochs += [replace(first_epoch, index=first + i) for i in range(phase.epochs)]
    return Plan(tuple(epochs), world_size, samples)


def _check_batch(epoch: Epoch) -> None:
    where = f"phases.{epoch.phase_index}.batch_per_worker"
    if epoch.world_size > epoch.num_samples:
        raise ConfigError(
            f"{where}: {epoch.world_size} ranks share {epoch.num_samples} training images: "
            "use fewer ranks"
        )
    if epoch.global_batch_size > epoch.num_samples:
        shard = epoch.num_samples // epoch.world_size
        raise ConfigError(
            f"{where}: {epoch.batch_per_worker} × accumulate {epoch.accumulate} is more than the "
            f"{shard} images each of {epoch.world_size} ranks has ({epoch.num_samples} in all): "
            f"use at most {max(1, shard // epoch.accumulate)}"
        )


def lr_scale(rates: LearningRate, global_batch_size: int) -> float:
    """Factor on the base rate. Source: linear: Goyal et al. 2017, 2.1; sqrt: Krizhevsky 2014."""
    k = global_batch_size / rates.base_batch
    return {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}[rates.scaling]


def _shape(rates: LearningRate, t: float, total: int) -> float:
    """Schedule factor at `t` of `total` epochs, 1 at its highest."""
    if rates.schedule == "step":
        return rates.gamma ** bisect.bisect_right(rates.milestones, t)
    if rates.schedule == "cosine":
        start = 0.0 if rates.warmup == "none" else rates.warmup_epochs
        done = min(1.0, max(0.0, (t - start) / (total - start))) if total > start else 0.0
        return 0.5 * (1 + math.cos(math.pi * done))
    if rates.schedule == "piecewise":
        return _interpolate(rates.points, t)
    return 1.0


def _interpolate(points: list[list[float]], t: float) -> float:
    right = bisect.bisect_right([x for x, _ in points], t)
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[right - 1 : right + 1]
    return y0 + (y1 - y0) * (t - x0) / (x1 - x0)


def _warmed(rates: LearningRate, target: float, t: float) -> float:
    """Warmup from the unscaled base to the scaled rate. Source: Goyal et al. 2017, 2.2."""
    if rates.warmup == "none" or t >= rates.warmup_epochs:
        return target
    start = min(rates.base, target)
    if rates.warmup == "constant":
        return start
    return start + (target - start) * t / rates.warmup_epochs


def _phase_lr(phase: Phase, t: float) -> float:
    """The phase's own rate at `t` epochs since its start, at the reference batch."""
    if isinstance(phase.lr, list):
        return phase.lr[0] + (phase.lr[1] - phase.lr[0]) * t / phase.epochs
    assert phase.lr is not None
    return phase.lr


def warnings(cfg: Config, plan: Plan) -> list[str]:
    """Rules of large-batch training that the plan bends, one line each, with the reason."""
    found: list[str] = []
    largest = max(epoch.global_batch_size for epoch in plan.epochs)
    if largest > PLAIN_SGD_BATCH_LIMIT:
        found.append(
            f"global batch {largest} with plain SGD: accuracy was kept up to "
            f"{PLAIN_SGD_BATCH_LIMIT} only (Goyal et al. 2017, fig. 1)"
        )
    batches = sorted({phase.batch_per_worker for phase in cfg.phases})
    if len(batches) > 1:
        found.append(
            f"batch-norm batch changes between phases ({', '.join(map(str, batches))}): "
            "it is part of the loss being optimised (Goyal et al. 2017, 3.1)"
        )
    scheduled = any(phase.lr is None for phase in cfg.phases)
    k = lr_scale(cfg.lr, plan.epochs[0].global_batch_size)
    if scheduled and k >= 4 and cfg.lr.warmup == "none" and cfg.lr.schedule != "piecewise":
        found.append(
            f"learning rate scaled ×{k:g} without warmup: at ×32 this cost 1.2 points of "
            "top-1 (Goyal et al. 2017, table 1)"
        )
    late = [m for m in cfg.lr.milestones if m >= len(plan.epochs)]
    if scheduled and late and cfg.lr.schedule == "step":
        found.append(f"milestones {late} lie beyond the last epoch, {len(plan.epochs)}")
    return found
