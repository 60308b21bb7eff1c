"""Updates against images: what another batch would need to come to the same loss.

With batch b an update makes 1 / (1 + B/b) of the progress that it would make without noise, where B is the
noise scale at that point of the training. A run that has made u updates with batch b₀ there needs
u · (1 + B/b) / (1 + B/b₀) with batch b. Summed over a training, with B and b₀ as they were, that is
S(b) = S_min + E_min / b, with S_min = Σ u / (1 + B/b₀) and E_min = Σ u · B / (1 + B/b₀): the paper's trade-off,
S = S_min (1 + B_crit / b) and E = E_min (1 + b / B_crit), with the critical batch B_crit = E_min / S_min.
Source: McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, section 2 (equation 2.11) and appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hvdtrain.analysis.study.noise.recorded import Recorded

AROUND = 5
"""Powers of two below and above the critical batch that a table has."""


class Stage(NamedTuple):
    """Updates of one sort."""

    image_size: int
    """In pixels."""
    batch: int
    """Global, in images."""


@dataclass(frozen=True)
class Fewest:
    """The least that a part of a training needs, with whatever batch."""

    updates: float = 0.0
    """S_min: of an endless batch."""
    images: float = 0.0
    """E_min: of batch 1."""

    def plus(self, updates: float, batch: float, scale: float) -> Fewest:
        """With `updates` more, made with `batch` at a noise scale `scale`."""
        progress = updates / (1 + scale / batch)
        return Fewest(self.updates + progress, self.images + progress * scale)

    def times(self, factor: float) -> Fewest:
        """So much of it."""
        return Fewest(factor * self.updates, factor * self.images)


@dataclass(frozen=True)
class TradeOff:
    """Of a whole training."""

    made: Mapping[Stage, float]
    """The updates that the run has made or plans."""
    by_size: Mapping[int, Fewest]
    """By image size in pixels: updates of another size take another time."""

    @property
    def updates(self) -> float:
        """Of the run."""
        return sum(self.made.values())

    @property
    def batch(self) -> float:
        """Of the run: mean over its updates."""
        return sum(stage.batch * updates for stage, updates in self.made.items()) / self.updates

    @property
    def fewest(self) -> Fewest:
        """Of all image sizes."""
        return Fewest(
            sum(each.updates for each in self.by_size.values()),
            sum(each.images for each in self.by_size.values()),
        )

    @property
    def critical(self) -> float:
        """The critical batch in images: there a run needs twice the fewest updates and twice the fewest
        images."""
        return self.fewest.images / self.fewest.updates

    def updates_with(self, batch: float) -> float:
        """That batch `batch` needs to the loss of the run."""
        return self.fewest.updates + self.fewest.images / batch

    def rows(self) -> list[dict[str, Any]]:
        """For each power of two around the critical batch and the run's own batch: updates and images over the
        fewest, and over those of the run."""
        own, critical = self.batch, self.critical
        ends = (critical * 2.0**-AROUND, critical * 2.0**AROUND)
        low, high = min(ends[0], own / 2), max(ends[1], 2 * own)
        powers = range(math.ceil(math.log2(max(1.0, low))), math.floor(math.log2(high)) + 1)
        batches = sorted({*(float(2**power) for power in powers), own})
        images = self.updates * own
        return [
            {
                "batch": batch,
                "own": batch == own,
                "updates": self.updates_with(batch),
                "images": batch * self.updates_with(batch),
                "updates_over_fewest": 1 + critical / batch,
                "images_over_fewest": 1 + batch / critical,
                "updates_over_own": self.updates_with(batch) / self.updates,
                "images_over_own": batch * self.updates_with(batch) / images,
            }
            for batch in batches
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "critical_batch": self.critical,
            "fewest_updates": self.fewest.updates,
            "fewest_images": self.fewest.images,
            "batch": self.batch,
            "updates": self.updates,
            "batches": self.rows(),
        }


def of_recorded(recorded: Recorded) -> TradeOff:
    """With the noise scale as it changed over the training. Updates of which it is not known count as the mean
    of the others of their image size, or of all."""
    made: dict[Stage, float] = {}
    known: dict[int, float] = {}
    by_size: dict[int, Fewest] = {}
    for each in recorded.intervals:
        stage = Stage(each.image_size, each.batch)
        made[stage] = made.get(stage, 0.0) + each.updates
        if each.scale is not None:
            before = by_size.get(each.image_size, Fewest())
            by_size[each.image_size] = before.plus(each.updates, each.batch, each.scale)
            known[each.image_size] = known.get(each.image_size, 0.0) + each.updates
    whole = Fewest(
        sum(each.updates for each in by_size.values()),
        sum(each.images for each in by_size.values()),
    )
    for size in {stage.image_size for stage in made}:
        total = sum(updates for stage, updates in made.items() if stage.image_size == size)
        if size in known:
            by_size[size] = by_size[size].times(total / known[size])
        else:
            by_size[size] = whole.times(total / sum(known.values()))
    return TradeOff(made, by_size)


def of_plan(steps: Iterable[tuple[Stage, int]], scale: float) -> TradeOff:
    """With one noise scale throughout. `steps`: the updates of each epoch."""
    made: dict[Stage, float] = {}
    by_size: dict[int, Fewest] = {}
    for stage, updates in steps:
        made[stage] = made.get(stage, 0.0) + updates
        before = by_size.get(stage.image_size, Fewest())
        by_size[stage.image_size] = before.plus(updates, stage.batch, scale)
    return TradeOff(made, by_size)
