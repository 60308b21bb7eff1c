"""The epochs of a run, from config and world size: steps, image sizes, batches, rates.

Needs neither torch nor Horovod nor the images, so `hvdtrain plan` works on a laptop. Everything is
a function of the samples seen, so it does not change when a run is resumed with another number of
workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hvdtrain.config.networks import NETWORKS, no_batch_norm
from hvdtrain.config.schema import Config, LearningRate, Phase
from hvdtrain.errors import ConfigError
from hvdtrain.plan.schedules import cycled_momentum, lr_scale, ramp, scheduled_lr


@dataclass(frozen=True, order=True)
class Position:
    """How far a run is: whole epochs, and samples of the next one (all ranks together)."""

    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch, or the rest of it. Sizes are per rank unless they are named global."""

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
        return self.phase.image_size_at(self.index - self.first_of_phase)

    @property
    def val_image_size(self) -> int:
        """Side of evaluation images in pixels."""
        return self.phase.val_image_size or self.phase.largest_image_size

    @property
    def rect_val(self) -> bool:
        """Whether evaluation images are rectangles, in groups of similar shape, not squares."""
        return self.phase.rect_val

    @property
    def min_crop_area(self) -> float:
        """Smallest share of an image's area that a random crop keeps."""
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
        """Updates left in this epoch; the last one may have fewer images than a whole batch."""
        return math.ceil((self.num_samples - self.start) / self.global_batch_size)

    def samples_after(self, i: int) -> int:
        """Samples of this epoch consumed after step `i` of those left."""
        return min(self.start + (i + 1) * self.global_batch_size, self.num_samples)

    def position_after(self, i: int) -> Position:
        """Position of the run after step `i`; after the last one the start of the next epoch."""
        consumed = self.samples_after(i)
        whole = consumed == self.num_samples
        return Position(self.index + 1, 0) if whole else Position(self.index, consumed)

    def done_after(self, i: int) -> float:
        """Share (0-1) of the run's samples consumed after step `i` of those left; 1 after the last."""
        return (self.index + self.samples_after(i) / self.num_samples) / self.total_epochs

    def lr(self, i: int) -> float:
        """Learning rate of step `i` of those left in this epoch."""
        return self.lr_at(self._time(i))

    def lr_at(self, t: float) -> float:
        """Learning rate at `t` epochs since the start of the run, at this epoch's batch."""
        batch = self.global_batch_size
        t = self.index if self.rates.update == "epoch" else t
        if self.phase.lr is not None:
            return lr_scale(self.rates, batch) * ramp(self.phase.lr, self._done(t))
        return scheduled_lr(self.rates, t, self.total_epochs, batch)

    def momentum(self, i: int) -> float:
        """Momentum (β1 of LAMB and AdamW) of step `i` of those left in this epoch."""
        return self.momentum_at(self._time(i))

    def momentum_at(self, t: float) -> float:
        """Momentum at `t` epochs since the start of the run."""
        if self.phase.momentum is not None:
            return ramp(self.phase.momentum, self._done(t))
        cycled = cycled_momentum(self.rates, t, self.total_epochs)
        return self.momentum_value if cycled is None else cycled

    def _time(self, i: int) -> float:
        """Epochs since the start of the run when step `i` of those left in this epoch begins."""
        consumed = self.start + i * self.global_batch_size
        return self.index + consumed / self.num_samples

    def _done(self, t: float) -> float:
        """Share of the phase that has passed at `t`."""
        return (t - self.first_of_phase) / self.phase.epochs

    def should_log(self, i: int, every: int) -> bool:
        """Whether step `i` is reported: every `every`-th one of the epoch, and its last."""
        return (i + 1) % every == 0 or i + 1 == self.steps


@dataclass(frozen=True)
class Plan:
    """All epochs of a run at one world size."""

    epochs: tuple[Epoch, ...]
    world_size: int
    num_samples: int

    def epochs_from(self, position: Position) -> Iterator[Epoch]:
        """The epochs left after `position`; the first one may be partial."""
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
    """The plan of `cfg` on `world_size` ranks over `num_samples` images (None: as the config says).

    Raises ConfigError if the number of images is unknown or less than a global batch.
    """
    samples = cfg.planned_images if num_samples is None else num_samples
    if samples is None:
        raise ConfigError(
            "data.train_size: unknown number of training images: set it, or set data.train to a dataset"
        )
    epochs: list[Epoch] = []
    for phase_index, phase in enumerate(cfg.phases):
        first_epoch = _first_epoch(cfg, world_size, samples, phase_index)
        _check_batch(first_epoch)
        of_phase = [replace(first_epoch, index=len(epochs) + i) for i in range(phase.epochs)]
        _check_features(cfg, min(of_phase, key=lambda epoch: epoch.image_size))
        epochs += of_phase
    _check_momentum(cfg, epochs[0].momentum_value)
    return Plan(tuple(epochs), world_size, samples)


def epoch_of(cfg: Config, world_size: int, num_samples: int, index: int) -> Epoch:
    """The epoch number `index` of the plan, which is not checked; the last one if it is shorter."""
    for phase_index in range(len(cfg.phases)):
        epoch = _first_epoch(cfg, world_size, num_samples, phase_index)
        if index < epoch.index + epoch.phase.epochs:
            break
    last = epoch.index + epoch.phase.epochs - 1
    return replace(epoch, index=min(index, last))


def _first_epoch(cfg: Config, world_size: int, num_samples: int, phase_index: int) -> Epoch:
    """The first epoch of a phase."""
    first = sum(phase.epochs for phase in cfg.phases[:phase_index])
    return Epoch(
        index=first,
        phase_index=phase_index,
        first_of_phase=first,
        phase=cfg.phases[phase_index],
        rates=cfg.lr,
        total_epochs=sum(phase.epochs for phase in cfg.phases),
        accumulate=cfg.train.accumulate,
        world_size=world_size,
        num_samples=num_samples,
        momentum_value=cfg.optimizer.first_momentum,
    )


def _check_momentum(cfg: Config, constant: float) -> None:
    """Refuse a changing momentum at momentum 0, where the optimizer has no momentum buffer."""
    changing = [(f"phases.{i}.momentum", phase.momentum) for i, phase in enumerate(cfg.phases)]
    for key, value in [("lr.cycle_momentum", cfg.lr.cycle_momentum), *changing]:
        if value is not None and constant == 0:
            raise ConfigError(f"{key}: {value} needs optimizer.momentum above 0, found 0")


def _check_features(cfg: Config, smallest: Epoch) -> None:
    """Refuse batch norm over all ranks where there is none, and images that a network shrinks to nothing,
    or to one value per channel of a batch norm, whose deviation would be 0. Networks of other libraries are tried when they are built."""
    network, size = NETWORKS.get(cfg.model.name), smallest.image_size
    if network is None:
        return
    if cfg.model.batch_norm == "global" and not network.batch_norm:
        raise ConfigError(no_batch_norm(cfg.model.name))
    side, phase = network.last_side(size), f"phases.{smallest.phase_index}"
    if side == 0:
        raise ConfigError(
            f"{phase}.image_size: {cfg.model.name} shrinks images of {size} px to nothing: use "
            f"{network.smallest} px or more"
        )
    single = side == 1 and smallest.batch_per_worker == 1
    if single and network.batch_norm and not cfg.model.freeze:
        raise ConfigError(one_value(phase, cfg.model.name, size))


def one_value(phase: str, model: str, image_size: int) -> str:
    """The message for a batch norm that sees one value per channel. `phase`: its key."""
    return (
        f"{phase}.batch_per_worker: 1 image of {image_size} px is 1 × 1 px in the last stage of "
        f"{model}: batch norm needs more than one value per channel: use a larger batch_per_worker "
        "or image_size, or a model without batch norm"
    )


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
