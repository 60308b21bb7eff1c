"""The figures of a report: time to a target, cost, speed by phase. Arithmetic only."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from hvdtrain.errors import ConfigError
from hvdtrain.report.events import number, whole
from hvdtrain.report.run import Point, RunRecord

METRICS = ("top1", "top5", "loss")
"""What a target may be set for; a loss is reached from above."""


@dataclass(frozen=True)
class Target:
    """An evaluation result to be reached: top1 and top5 as a ratio, loss per image."""

    metric: str
    value: float

    def met(self, value: float) -> bool:
        """Whether an evaluation with this `value` reaches it."""
        return value <= self.value if self.metric == "loss" else value >= self.value


@dataclass(frozen=True)
class Prices:
    """Dollars per node-hour, finite; `nodes` replaces what the run tells of itself."""

    on_demand: float | None = None
    spot: float | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        for price in (self.on_demand, self.spot):
            if price is not None and not (0 <= price < math.inf):
                raise ConfigError(f"price per node-hour: expected dollars, found {price}")


@dataclass(frozen=True)
class PhaseSpeed:
    """All training intervals at one image size and global batch; images/s of all ranks."""

    image_size: int | None
    global_batch_size: int | None
    first_epoch: float
    last_epoch: float
    images: float
    seconds: float
    images_per_second: float | None
    efficiency: float | None
    ratios: dict[str, float]
    """Shares of the time by name (`data_wait`, …), weighted by time."""


def parse_target(text: str) -> Target:
    """`top1=0.93` as a Target; raises ConfigError with what was expected."""
    metric, equals, value_text = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"--target {text}: expected METRIC=VALUE, such as top1=0.93")
    if metric not in METRICS:
        raise ConfigError(
            f"--target {text}: unknown metric {metric!r}; known are {', '.join(METRICS)}"
        )
    try:
        value = float(value_text)
    except ValueError:
        value = math.nan
    upper = math.inf if metric == "loss" else 1.0
    if not 0 < value <= upper or math.isinf(value):
        expected = "a number above 0" if metric == "loss" else "a ratio above 0, at most 1"
        raise ConfigError(f"--target {text}: expected {expected}, found {value_text!r}")
    return Target(metric, value)


def reached(run: RunRecord, target: Target) -> Point | None:
    """The first evaluation that meets `target`."""
    for point in run.evals:
        value = number(point.values, target.metric)
        if value is not None and target.met(value):
            return point
    return None


def best(run: RunRecord, metric: str) -> tuple[float, Point] | None:
    """The best evaluation result, and the first evaluation that has it."""
    found = [(v, p) for p in run.evals if (v := number(p.values, metric)) is not None]
    if not found:
        return None
    choose = min if metric == "loss" else max
    return choose(found, key=lambda pair: pair[0])


def nodes_of(run: RunRecord, attempt: int, override: int | None = None) -> tuple[int, bool]:
    """Machines of one attempt, and whether the run or the user told (else 1 is assumed)."""
    told = override or run.attempts[attempt].nodes or whole(run.environment, "nodes")
    ranks = run.attempts[attempt].world_size or whole(run.environment, "world_size")
    return told or 1, told is not None or ranks == 1


def node_hours(run: RunRecord, nodes: int | None = None, until_s: float = math.inf) -> float:
    """Billed: nodes × wall time of every attempt, up to `until_s` after the run's first start.

    Set-up, evaluation, checkpoints and steps made twice count; pauses between attempts do not.
    """
    began = run.attempts[0].began
    total = 0.0
    for index, attempt in enumerate(run.attempts):
        seconds = min(attempt.ended, began + until_s) - attempt.began
        total += max(0.0, seconds) * nodes_of(run, index, nodes)[0]
    return total / 3600


def paused_s(run: RunRecord) -> float:
    """Wall time between attempts, when nothing ran."""
    return sum(max(0.0, b.began - a.ended) for a, b in itertools.pairwise(run.attempts))


def ratio_names(run: RunRecord) -> list[str]:
    """Shares of time that the training intervals tell, without their `_ratio`."""
    names = {key: None for point in run.train for key in point.values if key.endswith("_ratio")}
    return [
        key.removesuffix("_ratio")
        for key in names
        if all(-1 <= (number(p.values, key) or 0.0) <= 1 for p in run.train)
    ]


def phase_speeds(run: RunRecord) -> list[PhaseSpeed]:
    """Speed at each image size and global batch, in the order the run met them."""
    parts: dict[tuple[int | None, int | None], list[Point]] = {}
    for point in run.train:
        key = (whole(point.values, "image_size"), whole(point.values, "global_batch_size"))
        parts.setdefault(key, []).append(point)
    names = ratio_names(run)
    return [_phase_speed(key, points, names) for key, points in parts.items()]


def _phase_speed(
    key: tuple[int | None, int | None], points: list[Point], names: list[str]
) -> PhaseSpeed:
    seconds = sum(point.seconds for point in points)
    images = sum(number(point.values, "samples") or 0.0 for point in points)
    ratios = {}
    for name in names:
        told = [(number(p.values, f"{name}_ratio"), p.seconds) for p in points]
        known = [(ratio, s) for ratio, s in told if ratio is not None]
        if weight := sum(s for _ratio, s in known):
            ratios[name] = sum(ratio * s for ratio, s in known) / weight
    return PhaseSpeed(
        image_size=key[0],
        global_batch_size=key[1],
        first_epoch=points[0].began_at,
        last_epoch=points[-1].epoch,
        images=images,
        seconds=seconds,
        images_per_second=images / seconds if images and seconds else None,
        efficiency=_efficiency(points),
        ratios=ratios,
    )


def _efficiency(points: list[Point]) -> float | None:
    """Of a phase: that of its intervals, weighted by their seconds.

    Older runs tell that of the phase so far instead, anew after a restart.
    """
    told = [(number(p.values, "efficiency"), p.seconds) for p in points]
    if any("efficiency_so_far" in point.values for point in points):
        known = [(value, seconds) for value, seconds in told if value is not None]
        total = sum(seconds for _value, seconds in known)
        return sum(value * seconds for value, seconds in known) / total if total else None
    last: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for point in points:
        value = number(point.values, "efficiency")
        if value is not None:
            last[point.attempt] = value
            seconds[point.attempt] = seconds.get(point.attempt, 0.0) + point.seconds
    total = sum(seconds.values())
    return sum(last[key] * seconds[key] for key in last) / total if total else None


def target_dict(run: RunRecord, target: Target, prices: Prices) -> dict[str, Any]:
    """When and at what cost `target` was reached; `reached` false and the best result if not."""
    point = reached(run, target)
    found: dict[str, Any] = {"metric": target.metric, "target": target.value}
    if point is None:
        top = best(run, target.metric)
        return {**found, "reached": False, "best": top[0] if top else None}
    return {
        **found,
        "reached": True,
        "value": number(point.values, target.metric),
        "epoch": point.epoch,
        "samples": point.samples,
        "train_seconds": point.train_s,
        "wall_seconds": point.wall_s,
        **cost_dict(run, prices, point.wall_s),
    }


def cost_dict(run: RunRecord, prices: Prices, until_s: float = math.inf) -> dict[str, Any]:
    """Node-hours, and dollars for each price that is known."""
    hours = node_hours(run, prices.nodes, until_s)
    return {
        "node_hours": hours,
        "cost": None if prices.on_demand is None else hours * prices.on_demand,
        "spot_cost": None if prices.spot is None else hours * prices.spot,
    }


def run_dict(run: RunRecord, targets: list[Target], prices: Prices) -> dict[str, Any]:
    """All figures of one run, for tables and for programs."""
    last = run.last
    final = run.evals[-1].values if run.evals else {}
    top = best(run, "top1")
    train_s = last.train_s if last else 0.0
    samples = last.samples if last else 0.0
    nodes = [nodes_of(run, index, prices.nodes) for index in range(len(run.attempts))]
    planned = whole(run.summary, "epochs") or (whole(last.values, "epochs") if last else None)
    return {
        "run": run.label,
        "name": run.name,
        "finished": run.finished,
        "epoch": last.epoch if last else None,
        "epochs": planned,
        "top1": number(final, "top1"),
        "top5": number(final, "top5"),
        "loss": number(final, "loss"),
        "best_top1": top[0] if top else None,
        "best_top1_epoch": top[1].epoch if top else None,
        "samples": samples,
        "images_per_second": samples / train_s if train_s else None,
        "scaling_efficiency": _overall_efficiency(run),
        "noise_scale": _noise_scale(run),
        "world_size": run.attempts[-1].world_size or whole(run.environment, "world_size"),
        "nodes": nodes[-1][0],
        "nodes_assumed": not all(told for _nodes, told in nodes),
        "train_seconds": train_s,
        "wall_seconds": run.wall_s,
        "billed_seconds": sum(attempt.seconds for attempt in run.attempts),
        "paused_seconds": paused_s(run),
        "redone_seconds": run.redone_s,
        "attempts": len(run.attempts),
        **cost_dict(run, prices),
        "bad_samples": len(run.bad_samples),
        "damaged_lines": run.damaged_lines,
        "targets": [target_dict(run, target, prices) for target in targets],
        "phases": [vars(phase) for phase in phase_speeds(run)],
    }


def _noise_scale(run: RunRecord) -> dict[str, float] | None:
    """What `noise_scale.advice` says in the summary; None unless it is whole."""
    found = run.summary.get("noise_scale")
    keys = ("recommended_batch", "batch", "doubling_steps", "doubling_images")
    values = {key: number(found, key) for key in keys} if isinstance(found, dict) else {}
    known = {key: value for key, value in values.items() if value is not None}
    return known if len(known) == len(keys) else None


def _overall_efficiency(run: RunRecord) -> float | None:
    """That of all phases, weighted by time."""
    known = [(p.efficiency, p.seconds) for p in phase_speeds(run) if p.efficiency is not None]
    total = sum(seconds for _efficiency, seconds in known)
    return sum(value * seconds for value, seconds in known) / total if total else None
