"""What the run directory of a member says: losses, times, and how its weights moved."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.analysis.study.asked import Member
from hvdtrain.report.curves import Curve, curve_by_epoch, curve_of, epochs_of
from hvdtrain.report.events import Event, number, read_lines
from hvdtrain.report.run import Point, RunRecord, read_run


@dataclass(frozen=True)
class Result:
    """One member. Losses are per image; times are of the training steps, without evaluation, in seconds."""

    name: str
    batch: int
    scaling: str
    rate: float
    seed: int
    ranks: int
    finished: bool
    diverged: bool
    epochs: float
    updates: float
    best_loss: float | None
    """Lowest validation loss; None before the first evaluation."""
    best_top1: float | None
    """At that evaluation."""
    highest_top1: float | None
    epochs_to_best: float | None
    updates_to_best: float | None
    seconds_to_best: float | None
    seconds_per_epoch: float | None
    """Median of the whole epochs."""
    train_loss: float | None
    """Mean over the epoch before the best evaluation."""
    gap: float | None
    """Generalisation gap: lowest validation loss less that training loss."""
    distance: float | None
    """From the start at the best evaluation; L2 norm, as the next ones."""
    layer_distances: dict[str, float]
    epoch_distance: float | None
    """Mean over epochs of the distance travelled in one."""
    path_length: float | None
    """Mean over epochs of the sum of the norms of its updates."""
    update_norm: float | None
    """Median of the norms of single updates."""
    updates_per_epoch: float | None
    noise_scale: float | None
    """In images, at the end; None where the run could not measure it."""
    curves: dict[str, Curve]
    """validation loss, training loss, top-1, distance, epoch distance."""
    update_norms: list[float]
    """Percentiles 0 … 100 of all updates."""
    sharpness: dict[float, float] = field(default_factory=dict)
    """By ε, at the best evaluation, where it was measured."""
    noise_at_best: float | None = None
    """Noise scale in images as measured there; `noise_scale` is what the run recorded."""

    def row(self) -> dict[str, Any]:
        """Without what is a list: a line of `study.csv`."""
        values = asdict(self)
        layers = values.pop("layer_distances")
        sharpness = values.pop("sharpness")
        del values["curves"], values["update_norms"]
        values |= {f"distance of {name}": value for name, value in layers.items()}
        return values | {f"sharpness {epsilon:g}": value for epsilon, value in sharpness.items()}


def result_of(member: Member, root: Path, *, finished: bool, diverged: bool) -> Result:
    """The result of a member so far. Raises ResourceError if it has not begun."""
    run = read_run(root)
    evals = [*{point.values.get("step"): point for point in run.evals}.values()]
    found = [(loss, p) for p in evals if (loss := number(p.values, "loss")) is not None]
    best_loss, best = min(found, key=lambda pair: pair[0], default=(None, None))
    per_epoch = epochs_of(run)
    moved = _moved(run)
    at_best = moved.get(round(best.epoch)) if best else None
    losses = {epoch: loss for epoch, (loss, _s) in per_epoch.items()}
    train_loss = losses.get(round(best.epoch)) if best else None
    norms, count = _merged(list(moved.values()))
    return Result(
        *(member.name, member.batch, member.scaling, member.rate, member.seed, member.ranks),
        finished=finished,
        diverged=diverged,
        epochs=run.last.epoch if run.last else 0.0,
        updates=(number(run.last.values, "step") or 0.0) if run.last else 0.0,
        best_loss=best_loss,
        best_top1=number(best.values, "top1") if best else None,
        highest_top1=max(
            (v for p in evals if (v := number(p.values, "top1")) is not None), default=None
        ),
        epochs_to_best=best.epoch if best else None,
        updates_to_best=number(best.values, "step") if best else None,
        seconds_to_best=best.train_s if best else None,
        seconds_per_epoch=_median([seconds for _loss, seconds in per_epoch.values()]),
        train_loss=train_loss,
        gap=None if best_loss is None or train_loss is None else best_loss - train_loss,
        distance=number(at_best, "distance") if at_best else None,
        layer_distances=_layers(at_best) if at_best else {},
        epoch_distance=_mean([number(each, "epoch_distance") for each in moved.values()]),
        path_length=_mean([number(each, "path_length") for each in moved.values()]),
        update_norm=norms[50] if norms else None,
        updates_per_epoch=count / len(moved) if moved else None,
        noise_scale=_last_noise(run),
        curves=_curves(run, evals, per_epoch, moved),
        update_norms=norms,
    )


def _moved(run: RunRecord) -> dict[int, Event]:
    """The reports on weights by epoch; of an epoch that was trained twice the last."""
    events, _damaged = read_lines(run.paths.events)
    found = [event for event in events if event["kind"] == "weights"]
    last = run.last.epoch if run.last else 0.0
    kept = {round(epoch): event for event in found if (epoch := number(event, "epoch")) is not None}
    return {epoch: kept[epoch] for epoch in sorted(kept) if epoch <= last + 1e-9}


def _layers(report: Event) -> dict[str, float]:
    """Distances from the start by layer; what is no number is left out."""
    found = report.get("layer_distances")
    layers = found if isinstance(found, dict) else {}
    return {name: v for name in layers if (v := number(layers, name)) is not None}


def _merged(reports: list[Event]) -> tuple[list[float], int]:
    """Percentiles of the norms of all updates, from those of each epoch, and the number of updates.

    Each epoch's percentiles stand for equal shares of its updates, so the rank of a merged one is right
    to a hundredth.
    """
    values: list[float] = []
    shares: list[float] = []
    count = 0
    for report in reports:
        updates, listed = int(number(report, "updates") or 0), report.get("update_norms")
        items = listed if isinstance(listed, list) else []
        norms = [v for item in items if (v := number({"norm": item}, "norm")) is not None]
        middle = [(a + b) / 2 for a, b in itertools.pairwise(norms)]
        values += middle
        shares += [updates / len(middle)] * len(middle) if middle else []
        count += updates
    if not values:
        return [], count
    order = np.argsort(values)
    ordered, weight = np.array(values)[order], np.array(shares)[order]
    ranks = (np.cumsum(weight) - weight / 2) / weight.sum()
    return np.interp(np.linspace(0, 1, 101), ranks, ordered).tolist(), count


def _curves(
    run: RunRecord,
    evals: list[Point],
    per_epoch: dict[int, tuple[float, float]],
    moved: dict[int, Event],
) -> dict[str, Curve]:
    curves = {
        "validation loss": curve_of(evals, "loss"),
        "top-1": curve_of(evals, "top1"),
    }
    of_epochs: dict[str, dict[int, float | None]] = {
        "training loss": {epoch: each[0] for epoch, each in per_epoch.items()},
        "distance": {epoch: number(each, "distance") for epoch, each in moved.items()},
        "epoch distance": {epoch: number(each, "epoch_distance") for epoch, each in moved.items()},
    }
    curves |= {name: curve_by_epoch(run, values) for name, values in of_epochs.items()}
    return curves


def _last_noise(run: RunRecord) -> float | None:
    values = [number(point.values, "gradient_noise_scale") for point in run.train]
    return next((value for value in reversed(values) if value is not None), None)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
