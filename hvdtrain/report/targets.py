"""Targets of a run: an evaluation result to be reached, and the evaluation that reaches it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvdtrain.errors import ConfigError
from hvdtrain.report.events import number
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


def reached(run: RunRecord, target: Target) -> tuple[float, Point] | None:
    """The first evaluation that meets `target`, behind its result."""
    results = _results(run, target.metric)
    return next(((value, point) for value, point in results if target.met(value)), None)


def best(run: RunRecord, metric: str) -> tuple[float, Point] | None:
    """The first evaluation that has the best result, behind this result."""
    choose = min if metric == "loss" else max
    return choose(_results(run, metric), key=lambda pair: pair[0], default=None)


def _results(run: RunRecord, metric: str) -> list[tuple[float, Point]]:
    return [(v, p) for p in run.evals if (v := number(p.values, metric)) is not None]
