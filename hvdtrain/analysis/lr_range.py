"""LR range test: a short training in which the learning rate rises exponentially."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hvdtrain import activity
from hvdtrain.engine.calibrate import restored
from hvdtrain.engine.mixing import Batch
from hvdtrain.engine.step import State, train_step
from hvdtrain.errors import TrainingError
from hvdtrain.plan.epochs import Epoch
from hvdtrain.plan.schedules import lr_scale
from hvdtrain.report.palette import BLUE, PURPLE, VERMILLION
from pipelines.loader import Loaders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING = 0.98
"""Decay of the moving average of the loss."""
WIDE = 8.0
"""The plot's loss axis is logarithmic if a loss is over this many times the smoothed minimum."""
DIVERGED = 4.0
"""The test ends when the smoothed loss is this many times its minimum."""
_SETTLED = 10  # steps before the smoothed loss is judged


@dataclass(frozen=True)
class LRRange:
    """The result: for each step the rate, the loss of the global batch and its moving average."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    global_batch_size: int
    scale: float
    """Rate at this global batch divided by `lr.base`."""

    @property
    def steepest(self) -> float:
        """Rate at which the smoothed loss falls fastest per factor of the rate."""
        least = max(_SETTLED + 2, int(np.argmin(self.smoothed)) + 1)
        slope = np.gradient(np.array(self.smoothed[:least]), np.log(self.rates[:least]))
        return self.rates[_SETTLED + int(np.argmin(slope[_SETTLED:]))]

    @property
    def tenth_of_minimum(self) -> float:
        """A tenth of the rate at which the smoothed loss has its minimum."""
        return self.rates[int(np.argmin(self.smoothed))] / 10


def lr_range_test(
    state: State,
    loaders: Loaders,
    epoch: Epoch,
    *,
    lowest: float = 1e-4,
    highest: float = 10.0,
    steps: int = 200,
) -> LRRange:
    """Train from `state` with rates from `lowest` to `highest`, then restore the state.

    Every rank must call it; the losses are those of the global batch, by one small sum per step.
    `epoch` gives image size, batch and momentum. If it is shorter than `steps`, the samples of the
    next epochs follow. Raises TrainingError if the loss is not finite from the start.
    Source: Smith 2015, arXiv 1506.01186; smoothing and end as in fastai.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    activity.enter("learning rate test", steps)
    with restored(state):
        for i, batch in zip(range(steps), _batches(loaders, epoch), strict=False):
            lr = lowest * (highest / lowest) ** (i / (steps - 1))
            sums = train_step(state, batch, lr, epoch.momentum(0)).double()
            loss_sum, _top1, _top5, count = state.comm.sum_(sums, "lr_range").tolist()
            loss = loss_sum / count
            activity.step(i + 1)
            if not math.isfinite(loss):
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            rates.append(lr)
            losses.append(loss)
            smoothed.append(average / (1 - SMOOTHING ** (i + 1)))
            if i >= _SETTLED and smoothed[-1] > DIVERGED * min(smoothed[_SETTLED - 1 :]):
                break
    if len(rates) < _SETTLED + 2:
        fault = TrainingError(
            f"the loss is not finite after {len(rates)} steps from rate {lowest:g} up: "
            "lower --from, or check the images"
        )
        fault.everywhere = True
        raise fault
    scale = lr_scale(epoch.rates, epoch.global_batch_size)
    return LRRange(rates, losses, smoothed, epoch.global_batch_size, scale)


def _batches(loaders: Loaders, epoch: Epoch) -> Iterator[Batch]:
    while True:
        for _i, batch in loaders.train(epoch):
            yield batch
        epoch = replace(epoch, index=epoch.index + 1)


def plot(result: LRRange, path: Path) -> None:
    """Plot the losses over the rate."""
    draw(result).savefig(path, dpi=120)


def draw(result: LRRange) -> Figure:
    """The figure of `plot`; its legend is below the axes, and the axes show every loss."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(result.rates, result.losses, color="0.7", linewidth=1, label="loss of each step")
    axes.plot(result.rates, result.smoothed, color=BLUE, linewidth=2, label="moving average")
    named = (
        ("steepest", result.steepest, VERMILLION, "--"),
        ("minimum / 10", result.tenth_of_minimum, PURPLE, ":"),
    )
    for name, rate, color, style in named:
        label = f"{name}: {rate:.3g}"
        axes.axvline(rate, linestyle=style, linewidth=1.6, color=color, label=label)
    axes.set_xscale("log")
    lowest, highest = min(result.losses), max(result.losses)
    if lowest > 0 and highest > WIDE * min(result.smoothed):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(f"learning rate at global batch {result.global_batch_size}")
    axes.set_ylabel("training loss")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def as_dict(result: LRRange) -> dict[str, object]:
    """The content of `lr_range.json`."""
    return {
        "rates": result.rates,
        "losses": result.losses,
        "smoothed": result.smoothed,
        "global_batch_size": result.global_batch_size,
        "steepest": result.steepest,
        "tenth_of_minimum": result.tenth_of_minimum,
        "lr_base_steepest": result.steepest / result.scale,
        "lr_base_tenth_of_minimum": result.tenth_of_minimum / result.scale,
    }
