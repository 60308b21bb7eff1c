"""Learning rate and momentum as functions of `t`, the epochs since the start of the run.

`t` is the number of samples seen divided by the samples of an epoch, so it grows with every step
and means the same at any batch size. Step i of T of a published scheduler is t/total = i/T here:
the value at t = total belongs to the step after the last.
"""

from __future__ import annotations

import bisect
import math

from hvdtrain.config.schema import LearningRate

FASTAI_FINAL_DIV = 100.0
"""fastai's one cycle ends at its first rate divided by this. Source: fastai 0.7, sgdr.py."""


def lr_scale(rates: LearningRate, global_batch_size: int) -> float:
    """Factor on the base rate. Source: linear: Goyal et al. 2017, 2.1; sqrt: Krizhevsky 2014."""
    k = global_batch_size / rates.base_batch
    return {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}[rates.scaling]


def scheduled_lr(rates: LearningRate, t: float, total: int, global_batch_size: int) -> float:
    """Learning rate at `t` of `total` epochs at a global batch, warmup and scaling included."""
    target = rates.base * lr_scale(rates, global_batch_size) * factor(rates, t, total)
    return _warmed(rates, target, t)


def cycled_momentum(rates: LearningRate, t: float, total: int) -> float | None:
    """Momentum at `t` of a cycle, high where the rate is low; None if it does not cycle.

    Source: Smith 2018, arXiv 1803.09820; torch's OneCycleLR and CyclicLR.
    """
    if rates.cycle_momentum is None:
        return None
    low, high = rates.cycle_momentum
    return high - (high - low) * _height(rates, t, total)


def factor(rates: LearningRate, t: float, total: int) -> float:
    """Schedule at `t` of `total` epochs as a factor on the scaled base rate; 1 at its highest."""
    if rates.schedule == "step":
        return rates.gamma ** bisect.bisect_right(rates.milestones, t)
    if rates.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * _done(rates, t, total)))
    if rates.schedule == "polynomial":
        return float((1 - _done(rates, t, total)) ** rates.power)
    if rates.schedule == "piecewise":
        return _interpolate(rates.points, t)
    if rates.cycles:
        floor = _floor(rates, t, total)
        return floor + (1 - floor) * _height(rates, t, total)
    return 1.0


def turns(rates: LearningRate, total: int) -> list[float]:
    """The epochs at which the formula of the schedule or the warmup changes."""
    epochs: set[float] = set()
    if rates.warmup != "none":
        epochs.add(rates.warmup_epochs)
    if rates.schedule == "step":
        epochs.update(rates.milestones)
    elif rates.schedule == "piecewise":
        epochs.update(epoch for epoch, _ in rates.points)
    elif rates.schedule == "onecycle":
        epochs.add(rates.pct_start * total)
    elif rates.schedule == "onecycle_fastai":
        epochs.update(((1 - rates.pct_final) * total / 2, (1 - rates.pct_final) * total))
    elif rates.cycle_epochs:
        halves = math.ceil(2 * total / rates.cycle_epochs)
        epochs.update(i * rates.cycle_epochs / 2 for i in range(1, halves))
    return sorted(epochs)


def ramp(value: float | list[float], done: float) -> float:
    """`value`; a list of two numbers is interpolated at share `done` (0-1) of the way."""
    if isinstance(value, list):
        return value[0] + (value[1] - value[0]) * done
    return value


def _done(rates: LearningRate, t: float, total: int) -> float:
    """Share of the run after its warmup that has passed, 0-1."""
    start = 0.0 if rates.warmup == "none" else rates.warmup_epochs
    return min(1.0, max(0.0, (t - start) / (total - start))) if total > start else 0.0


def _interpolate(points: list[list[float]], t: float) -> float:
    right = bisect.bisect_right([x for x, _ in points], t)
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[right - 1 : right + 1]
    return y0 + (y1 - y0) * (t - x0) / (x1 - x0)


def _warmed(rates: LearningRate, target: float, t: float) -> float:
    """The rate `target`, or less during the warmup.

    Source: Goyal et al. 2017, 2.2; by epochs: `lr_cosine_policy` in image_classification/optimizers.py of
    NVIDIA/DeepLearningExamples (PyTorch/Classification/ConvNets).
    """
    if rates.warmup == "none" or t >= rates.warmup_epochs:
        return target
    if rates.update == "epoch" and rates.warmup == "gradual" and rates.warmup_start is None:
        return target * min(1.0, (t + 1) / rates.warmup_epochs)
    start = min(rates.base if rates.warmup_start is None else rates.warmup_start, target)
    if rates.warmup == "constant":
        return start
    return start + (target - start) * t / rates.warmup_epochs


def _height(rates: LearningRate, t: float, total: int) -> float:
    """Height of a cycle at `t`, from its lowest rate (0) to the base rate (1).

    Source: onecycle: torch's OneCycleLR with two phases; onecycle_fastai: fastai 0.7,
    CircularLR_beta; cyclical: Smith 2015, arXiv 1506.01186, and torch's CyclicLR.
    """
    done = t / total
    if rates.schedule == "onecycle":
        up = done / rates.pct_start
        down = (1 - done) / (1 - rates.pct_start)
        height = max(0.0, min(up, down))
        return (1 - math.cos(math.pi * height)) / 2 if rates.anneal == "cos" else height
    if rates.schedule == "onecycle_fastai":
        half = (1 - rates.pct_final) / 2
        return max(0.0, 1 - abs(done - half) / half)
    assert rates.cycle_epochs is not None
    whole, part = divmod(t / rates.cycle_epochs, 1)
    triangle = 1 - abs(2 * part - 1)
    if rates.cycle_mode == "triangular2":
        return triangle * math.pow(0.5, whole)
    if rates.cycle_mode == "exp_range":
        return triangle * math.pow(rates.gamma, t)
    return triangle


def _floor(rates: LearningRate, t: float, total: int) -> float:
    """The rate from which a cycle rises or to which it falls, as a factor on the base rate."""
    done = t / total
    first = 1 / rates.div_factor
    if rates.schedule == "onecycle" and done > rates.pct_start:
        return first / rates.final_div_factor
    if rates.schedule == "onecycle_fastai" and rates.pct_final > 0:
        late = max(0.0, (done - (1 - rates.pct_final)) / rates.pct_final)
        return first * (1 - late * (1 - 1 / FASTAI_FINAL_DIV))
    return first
