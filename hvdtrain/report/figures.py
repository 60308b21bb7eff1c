"""The figures of a report: results, time to a target, cost. Arithmetic only."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from hvdtrain.errors import ConfigError
from hvdtrain.report.events import number, whole
from hvdtrain.report.phases import PhaseSpeed, overall_efficiency, phase_speeds
from hvdtrain.report.run import RunRecord, offsets
from hvdtrain.report.targets import Target, best, reached


@dataclass(frozen=True)
class Prices:
    """Dollars per node-hour, finite; `nodes` replaces the number of nodes that the run reports."""

    on_demand: float | None = None
    spot: float | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        for price in (self.on_demand, self.spot):
            if price is not None and not (0 <= price < math.inf):
                raise ConfigError(f"price per node-hour: expected dollars, found {price}")


@dataclass(frozen=True)
class Cost:
    """Node-hours, and dollars for each price that is known."""

    node_hours: float
    cost: float | None
    spot_cost: float | None


@dataclass(frozen=True)
class Reached:
    """The evaluation that reaches a target, and what it took from the run's first start."""

    value: float
    epoch: float
    samples: float
    train_seconds: float
    wall_seconds: float
    cost: Cost


@dataclass(frozen=True)
class TargetResult:
    """Whether a run reaches a target."""

    metric: str
    target: float
    best: float | None
    """The best result of the run."""
    reached: Reached | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the best result only if the target is not reached."""
        named = {"metric": self.metric, "target": self.target, "reached": self.reached is not None}
        if self.reached is None:
            return {**named, "best": self.best}
        return {**named, **_flat(self.reached)}


@dataclass(frozen=True)
class RunFigures:
    """All figures of one run, for tables and for programs."""

    run: str
    """Its label."""
    name: str
    finished: bool
    epoch: float | None
    epochs: int | None
    top1: float | None
    """Of the last evaluation, as top5 and loss."""
    top5: float | None
    loss: float | None
    views: str
    """Of each validation image in the last evaluation, see `train.val_views`."""
    best_top1: float | None
    best_top1_epoch: float | None
    samples: float
    images_per_second: float | None
    scaling_efficiency: float | None
    noise_scale: dict[str, float] | None
    world_size: int | None
    nodes: int
    """Of the last attempt."""
    nodes_assumed: bool
    """Whether the number of nodes is not known for some attempt."""
    train_seconds: float
    wall_seconds: float
    last_train_seconds: float
    """Training time of the last attempt alone, as the wall time below."""
    last_wall_seconds: float
    billed_seconds: float
    paused_seconds: float
    redone_seconds: float
    attempts: int
    cost: Cost
    bad_samples: int
    damaged_lines: int
    targets: list[TargetResult]
    phases: list[PhaseSpeed]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the values of `cost` among the others."""
        return _flat(self) | {
            "targets": [target.as_dict() for target in self.targets],
            "phases": [vars(phase) for phase in self.phases],
        }


def _flat(figures: RunFigures | Reached) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in vars(figures).items():
        flat.update(vars(value) if isinstance(value, Cost) else {name: value})
    return flat


def nodes_of(run: RunRecord, attempt: int, override: int | None = None) -> tuple[int, bool]:
    """Number of nodes of one attempt, and whether it is known; 1 is assumed where it is not.

    `override` is the user's number.
    """
    nodes = override or run.attempts[attempt].nodes or whole(run.environment, "nodes")
    ranks = run.attempts[attempt].world_size or whole(run.environment, "world_size")
    return nodes or 1, nodes is not None or ranks == 1


def node_hours(run: RunRecord, nodes: int | None = None, until_s: float = math.inf) -> float:
    """Billed: nodes × wall time of every attempt, up to `until_s` after the run's first start.

    Set-up, evaluation, checkpoints and steps made twice count; pauses between attempts do not.
    """
    total = 0.0
    for index, (attempt, begun) in enumerate(zip(run.attempts, offsets(run.attempts), strict=True)):
        seconds = min(attempt.seconds, until_s - begun)
        total += max(0.0, seconds) * nodes_of(run, index, nodes)[0]
    return total / 3600


def paused_s(run: RunRecord) -> float:
    """Wall time between attempts, when nothing ran."""
    return sum(max(0.0, b.began - a.ended) for a, b in itertools.pairwise(run.attempts))


def cost_of(run: RunRecord, prices: Prices, until_s: float = math.inf) -> Cost:
    """Cost up to `until_s` after the run's first start."""
    hours = node_hours(run, prices.nodes, until_s)
    return Cost(
        node_hours=hours,
        cost=None if prices.on_demand is None else hours * prices.on_demand,
        spot_cost=None if prices.spot is None else hours * prices.spot,
    )


def target_result(run: RunRecord, target: Target, prices: Prices) -> TargetResult:
    """When and at what cost `target` was reached."""
    top, first, result = best(run, target.metric), reached(run, target), None
    if first is not None:
        value, point = first
        result = Reached(
            value=value,
            epoch=point.epoch,
            samples=point.samples,
            train_seconds=point.train_s,
            wall_seconds=point.wall_s,
            cost=cost_of(run, prices, point.wall_s),
        )
    return TargetResult(target.metric, target.value, top[0] if top else None, result)


def run_figures(run: RunRecord, targets: list[Target], prices: Prices) -> RunFigures:
    """All figures of one run."""
    last = run.last
    final = run.evals[-1].values if run.evals else {}
    top = best(run, "top1")
    train_s = last.train_s if last else 0.0
    samples = last.samples if last else 0.0
    nodes = [nodes_of(run, index, prices.nodes) for index in range(len(run.attempts))]
    planned = whole(run.summary, "epochs") or (whole(last.values, "epochs") if last else None)
    phases = phase_speeds(run)
    return RunFigures(
        run=run.label,
        name=run.name,
        finished=run.finished,
        epoch=last.epoch if last else None,
        epochs=planned,
        top1=number(final, "top1"),
        top5=number(final, "top5"),
        loss=number(final, "loss"),
        views=str(final.get("views", "one")),
        best_top1=top[0] if top else None,
        best_top1_epoch=top[1].epoch if top else None,
        samples=samples,
        images_per_second=samples / train_s if train_s else None,
        scaling_efficiency=overall_efficiency(phases),
        noise_scale=_noise_scale(run),
        world_size=run.attempts[-1].world_size or whole(run.environment, "world_size"),
        nodes=nodes[-1][0],
        nodes_assumed=not all(known for _nodes, known in nodes),
        train_seconds=train_s,
        wall_seconds=run.wall_s,
        last_train_seconds=sum(p.seconds for p in run.train if p.attempt == len(run.attempts) - 1),
        last_wall_seconds=run.attempts[-1].seconds,
        billed_seconds=sum(attempt.seconds for attempt in run.attempts),
        paused_seconds=paused_s(run),
        redone_seconds=run.redone_s,
        attempts=len(run.attempts),
        cost=cost_of(run, prices),
        bad_samples=len(run.bad_samples),
        damaged_lines=run.damaged_lines,
        targets=[target_result(run, target, prices) for target in targets],
        phases=phases,
    )


def _noise_scale(run: RunRecord) -> dict[str, float] | None:
    """What `noise_scale.advice` says in the summary; None unless it is whole."""
    advice = run.summary.get("noise_scale")
    keys = ("recommended_batch", "batch", "doubling_steps", "doubling_images")
    values = {key: number(advice, key) for key in keys} if isinstance(advice, dict) else {}
    known = {key: value for key, value in values.items() if value is not None}
    return known if len(known) == len(keys) else None
