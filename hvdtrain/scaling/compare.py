"""Compares measured steps of a real cluster with the prediction. docs/explanation/scaling.md has the format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from hvdtrain.config.fields import NotNegative, Positive, PositiveFloat, Section
from hvdtrain.errors import ResourceError
from hvdtrain.scaling.network import Cost
from hvdtrain.scaling.overlap import Group, make_step


class Message(Section):
    """One blocking allreduce."""

    bytes: PositiveFloat
    seconds: PositiveFloat


class Measured(Section):
    """One measured setting: times in seconds, bytes as given to allreduce. Other keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    label: str = ""
    hosts: Positive
    ranks_per_host: Positive
    link_gbit: PositiveFloat
    model: str
    compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    groups: Annotated[list[PositiveFloat], Field(min_length=1)]
    release_s: list[NotNegative]
    compute_s: PositiveFloat
    step_s: PositiveFloat
    allreduce: Annotated[list[Message], Field(min_length=2)]

    @model_validator(mode="after")
    def _check(self) -> Measured:
        if len(self.release_s) != len(self.groups):
            raise ValueError(f"{len(self.release_s)} release_s of {len(self.groups)} groups")
        if self.release_s != sorted(self.release_s) or self.release_s[-1] > self.compute_s:
            raise ValueError("release_s must rise, up to compute_s at most")
        if len({message.bytes for message in self.allreduce}) < 2:
            raise ValueError("allreduce needs two sizes or more")
        return self


@dataclass(frozen=True)
class Comparison:
    """One measured setting and its prediction."""

    measured: Measured
    latency_s: float
    """Of an allreduce of any size, fitted."""
    bytes_per_s: float
    """Of an allreduce in addition, fitted."""
    predicted_s: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured.step_s - 1

    def as_dict(self) -> dict[str, Any]:
        """For `scaling compare --json`."""
        return {
            **self.measured.model_dump(),
            "predicted_s": self.predicted_s,
            "error": self.error,
        }


def fit(messages: list[Message]) -> tuple[float, float]:
    """Fit a + b · bytes: latency a and seconds per byte b, neither below 0.

    Least squares of the relative errors, so that small messages count as much as large ones.
    """
    sizes = [m.bytes for m in messages]
    weights = [1 / m.seconds**2 for m in messages]
    total = sum(weights)
    x = sum(w * s for w, s in zip(weights, sizes, strict=True)) / total
    y = sum(w * m.seconds for w, m in zip(weights, messages, strict=True)) / total
    spread = sum(w * (s - x) ** 2 for w, s in zip(weights, sizes, strict=True))
    common = sum(
        w * (m.bytes - x) * (m.seconds - y) for w, m in zip(weights, messages, strict=True)
    )
    slope = max(0.0, common / spread)
    if y - slope * x >= 0:
        return y - slope * x, slope
    squares = sum(w * s * s for w, s in zip(weights, sizes, strict=True))
    return 0.0, sum(
        w * m.bytes * m.seconds for w, m in zip(weights, messages, strict=True)
    ) / squares


def between(messages: list[Message]) -> Cost:
    """Seconds of an allreduce of any size: linear between the measured sizes, and beyond them in
    proportion to the fitted line."""
    latency_s, slope = fit(messages)
    by_size: dict[float, list[float]] = {}
    for message in messages:
        by_size.setdefault(message.bytes, []).append(message.seconds)
    known = sorted((size, sum(times) / len(times)) for size, times in by_size.items())

    def line(size: float) -> float:
        return latency_s + slope * size

    def cost(size: float) -> float:
        if size <= known[0][0] or size >= known[-1][0]:
            end, seconds = known[0] if size <= known[0][0] else known[-1]
            return seconds * line(size) / line(end)
        upper = next(i for i, (end, _) in enumerate(known) if end >= size)
        (x0, y0), (x1, y1) = known[upper - 1], known[upper]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)

    return cost


def compare(measured: Measured, sigma: float = 0.0) -> Comparison:
    """Predict the step of one setting, without use of its `step_s`.

    `sigma`: of the stragglers; 0 if the computation was simulated by equal pauses on all ranks.
    """
    groups = [Group(*pair) for pair in zip(measured.groups, measured.release_s, strict=True)]
    step = make_step(
        groups,
        between(measured.allreduce),
        compute_s=measured.compute_s,
        backward_end_s=measured.release_s[-1],
        ranks=measured.hosts * measured.ranks_per_host,
        sigma=sigma,
    )
    latency_s, slope = fit(measured.allreduce)
    speed = 1 / slope if slope > 0 else float("inf")
    return Comparison(measured, latency_s, speed, step.seconds)


def read_measured(file: Path) -> list[Measured]:
    """The settings of a file that name their groups of gradients; those of other trainers do not.

    Raises ResourceError with the first fault.
    """
    try:
        content = json.loads(file.read_bytes())
        points = content["points"] if isinstance(content, dict) else content
        usable = [point for point in points if "groups" in point]
        measured = TypeAdapter(list[Measured]).validate_json(json.dumps(usable))
        if not measured:
            raise ValueError("no points")
    except OSError as error:
        raise ResourceError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as errors:
        first = errors.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ResourceError(
            f"{file}: point {place}: {first['msg']}; docs/explanation/scaling.md has the format"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResourceError(
            f"{file}: expected a JSON list of measured points, found another file "
            f"({repr(error)[:100]}); "
            "docs/explanation/scaling.md has the format"
        ) from None
    return measured
