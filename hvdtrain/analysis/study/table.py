"""The results of a study side by side: mean and spread over seeds, and each batch against the first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvdtrain.analysis.spread import Spread, csv_text, spread
from hvdtrain.analysis.study.member_results import Result

MEASURED = (
    *("best_loss", "best_top1", "highest_top1", "epochs_to_best", "updates_to_best"),
    *("seconds_to_best", "seconds_per_epoch", "epochs", "train_loss", "gap", "distance"),
    *("epoch_distance", "path_length", "update_norm", "updates_per_epoch", "noise_scale"),
    "noise_at_best",
)
"""Numbers of a result that have a mean."""


@dataclass(frozen=True)
class Group:
    """Members that differ in their seeds only."""

    batch: int
    scaling: str
    rate: float
    ranks: int
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """Its name in tables and legends."""
        of_ranks = f", {self.ranks} ranks" if self.ranks > 1 else ""
        return f"{self.batch}, rate {self.rate:g}{of_ranks}"

    @property
    def diverged(self) -> int:
        """Members whose loss is not finite."""
        return sum(result.diverged for result in self.results)

    def of(self, key: str) -> Spread | None:
        """A number of MEASURED, the distance of a layer by `layer:NAME`, or the sharpness by `sharpness:ε`;
        what diverged does not count."""
        kind, _, layer = key.partition(":")
        sound = [result for result in self.results if not result.diverged]
        if kind == "layer":
            return spread(result.layer_distances.get(layer) for result in sound)
        if kind == "sharpness":
            return spread(result.sharpness.get(float(layer)) for result in sound)
        return spread(getattr(result, key) for result in sound)

    @property
    def layers(self) -> list[str]:
        """Names of the layers whose distance was measured."""
        return [*dict.fromkeys(name for r in self.results for name in r.layer_distances)]

    @property
    def epsilons(self) -> list[float]:
        """Sizes of the boxes of the sharpness."""
        return [*dict.fromkeys(epsilon for r in self.results for epsilon in r.sharpness)]


def groups_of(results: Sequence[Result]) -> list[Group]:
    """By batch, scaling, rate and ranks, in this order."""
    found: dict[tuple[str, float, int, int], list[Result]] = {}
    for result in results:
        key = (result.scaling, result.rate, result.ranks, result.batch)
        found.setdefault(key, []).append(result)
    return [
        Group(batch, scaling, rate, ranks, tuple(each))
        for (scaling, rate, ranks, batch), each in sorted(found.items(), key=_order)
    ]


def _order(item: tuple[tuple[str, float, int, int], list[Result]]) -> tuple[int, int, float, int]:
    scaling, rate, ranks, batch = item[0]
    return ["none", "linear", "sqrt"].index(scaling), batch, rate, ranks


@dataclass(frozen=True)
class Split:
    """Why a batch travels less in an epoch than the first one: ratios, first / this one.

    `together` = `fewer` · `smaller`: the lengths of the paths. `straighter` is what the distance travelled
    has beyond it, since a path with fewer turns leads further.
    """

    fewer: float
    smaller: float
    together: float
    distance: float

    @property
    def straighter(self) -> float:
        """Distance ÷ length of the path of this batch, relative to the first one."""
        return self.together / self.distance

    @property
    def share_of_fewer(self) -> float | None:
        """Share of the effect, in logarithms, that fewer updates have; None without an effect."""
        return math.log(self.fewer) / math.log(self.together) if self.together > 1 else None


def split(first: Group, other: Group) -> Split | None:
    """Of two groups; None where something was not measured."""
    pairs = [
        (a.mean, b.mean)
        for key in ("updates_per_epoch", "path_length", "epoch_distance")
        if (a := first.of(key)) and (b := other.of(key)) and a.mean > 0 and b.mean > 0
    ]
    if len(pairs) < 3:
        return None
    (n0, n), (path0, path), (distance0, distance) = pairs
    smaller = (path0 / n0) / (path / n)
    return Split(n0 / n, smaller, path0 / path, distance0 / distance)


def epoch_ratios(first: Group, other: Group) -> list[float]:
    """For each epoch that all of both have made: the distance travelled by the first ÷ by the other."""
    columns = [_epoch_means(group) for group in (first, other)]
    return [a / b for a, b in zip(*columns, strict=False) if b > 0]


def _epoch_means(group: Group) -> list[float]:
    curves = [r.curves["epoch distance"].values for r in group.results if not r.diverged]
    return [statistics.fmean(values) for values in zip(*curves, strict=False)]


def as_csv(results: Sequence[Result]) -> str:
    """One line for each member, with a line of names."""
    return csv_text([result.row() for result in results])


def as_json(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Mean, deviation and count of every number of every group, and how it moves against the first."""
    found = []
    for group in groups:
        keys = [*MEASURED, *(f"layer:{name}" for name in group.layers)]
        keys += [f"sharpness:{epsilon:g}" for epsilon in group.epsilons]
        values = {key: vars(each) for key in keys if (each := group.of(key))}
        about = {"batch": group.batch, "scaling": group.scaling, "rate": group.rate}
        of_members = {"members": [result.name for result in group.results]}
        ratios = {"epoch_distance_ratios": epoch_ratios(groups[0], group)}
        parts = split(groups[0], group)
        against = {**ratios, "split": None if parts is None else vars(parts)}
        counts = {"ranks": group.ranks, "diverged": group.diverged}
        found.append({**about, **counts, **of_members, **values, "against_first": against})
    return found
