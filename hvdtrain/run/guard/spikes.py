"""Losses that jump: a step's loss against those of the steps before it.

The measure is the robust z-score, (loss − median) / spread, of the mean loss of a step over all ranks;
only a loss that is too high counts. Every rank has the same losses, so all ranks decide alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hvdtrain.errors import TrainingError
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.guard.numbers import REMEDY
from hvdtrain.run.guard.trail import Trail

WINDOW = 128
"""Steps whose losses are the measure."""
LEAST = 32
"""Of these, as many are needed before a step is judged."""
IN_A_ROW = 3
"""Steps above the limit that make a spike: a single one may be a batch of hard images."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution / its median absolute deviation.
Source: Rousseeuw and Croux, Alternatives to the Median Absolute Deviation, 1993."""
LEAST_SPREAD = 0.05
"""Share of the median that counts as spread at least: where a loss is near 0, or all images are the
same, its deviation says nothing."""


class LossSpike(TrainingError):
    """The loss jumped, and did not come back."""

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step
        """The first update of the spike."""


@dataclass
class Spikes:
    """Follows the losses of an attempt from report to report; the same on all ranks."""

    limit: float
    """z-score above which a loss is too high; 0: none is."""
    row: int = 0
    """Steps in a row, up to the last report, whose loss was too high."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _regime: tuple[int, ...] = ()

    def losses(self, trail: Trail) -> torch.Tensor:
        """What `check` needs of this rank, see `Trail.losses`; empty if nothing is judged."""
        return trail.losses() if self.limit else torch.zeros(0, dtype=torch.float64)

    def check(self, sums: Sequence[float], epoch: Epoch, step: int) -> None:
        """Judge the steps of a report, of which `step` is the last.

        `sums`: loss and images of each step, both summed over all ranks. Raises LossSpike. At another
        phase of `epoch`, image size or batch the measure begins anew.
        """
        regime = (epoch.phase_index, epoch.image_size, epoch.global_batch_size)
        if regime != self._regime:
            self.forget()
            self._regime = regime
        pairs = np.reshape(np.asarray(sums, dtype=np.float64), (-1, 2))
        for number, (total, images) in enumerate(pairs.tolist(), step - len(pairs) + 1):
            if images:
                self._add(total / images, number)

    def forget(self) -> None:
        """Begin anew, with other weights or other images."""
        self.row = 0
        self._losses.clear()

    def _add(self, loss: float, step: int) -> None:
        if len(self._losses) >= LEAST:
            losses = np.asarray(self._losses)
            middle = float(np.median(losses))
            spread = max(
                NORMAL * float(np.median(np.abs(losses - middle))), LEAST_SPREAD * abs(middle)
            )
            if loss > middle + self.limit * spread:
                self.row += 1
                if self.row >= IN_A_ROW:
                    raise LossSpike(
                        f"the loss is {loss:.4g} in step {step}, the last of {IN_A_ROW} in a row above "
                        f"{middle + self.limit * spread:.4g}, which is train.loss_spike {self.limit:g} "
                        f"times the spread {spread:.2g} above the median {middle:.4g} of the "
                        f"{len(losses)} steps before: {REMEDY}",
                        step - IN_A_ROW + 1,
                    )
                return  # not a part of the measure
        self.row = 0
        self._losses.append(loss)
