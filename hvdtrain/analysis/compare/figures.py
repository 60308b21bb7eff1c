"""The figures of a run that are compared: results, what they took, and speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hvdtrain.analysis.spread import Spread
from hvdtrain.report.curves import epochs_of
from hvdtrain.report.events import number
from hvdtrain.report.figures import Prices, run_figures
from hvdtrain.report.run import Point, RunRecord
from hvdtrain.report.targets import Target, best, reached
from hvdtrain.report.text import MISSING, count, duration, target_name

Better = Literal["low", "high", ""]


@dataclass(frozen=True)
class Figure:
    """One figure of a run, and how it is shown."""

    key: str
    title: str
    better: Better = ""
    quality: bool = False
    """A result of validation: a seed has one, however often it was run."""
    whole: bool = True
    """Only of finished runs: it would be another one later."""
    write: Callable[[float], str] | None = None
    """None: as a number with four digits."""

    @property
    def unit(self) -> str:
        """Of the number itself."""
        return "s" if self.write is duration else ""

    def text(self, value: Spread | None, of: int) -> str:
        """Mean ± standard deviation; with the number of runs that have it if that is not `of`."""
        if value is None:
            return MISSING
        if value.deviation is None or (value.deviation == 0 and not self.quality):
            text = self.write(value.mean) if self.write else f"{value.mean:.4g}"
        elif self.write is None:
            text = value.text()
        else:
            text = f"{self.write(value.mean)} ± {self.write(value.deviation)}"
        return text if value.count == of else f"{text} ({value.count} of {of})"


FIGURES = (
    Figure("best_loss", "lowest validation loss", "low", quality=True),
    Figure("last_loss", "last validation loss", "low", quality=True),
    Figure("best_top1", "highest top-1", "high", quality=True),
    Figure("last_top1", "last top-1", "high", quality=True),
    Figure("epochs_to_best", "epochs to the lowest loss", "low"),
    Figure("updates_to_best", "updates to the lowest loss", "low", write=count),
    Figure("seconds_to_best", "training time to the lowest loss", "low", write=duration),
    Figure("images_per_second", "images/s, median", "high", whole=False, write=count),
    Figure("seconds_per_epoch", "time per epoch, median", "low", whole=False, write=duration),
    Figure("scaling_efficiency", "scaling efficiency", "high", whole=False),
    Figure("epochs", "epochs"),
    Figure("updates", "updates", write=count),
    Figure("train_seconds", "training time", "low", write=duration),
    Figure("wall_seconds", "wall time", "low", write=duration),
    Figure("attempts", "attempts", whole=False),
    Figure("machine_hours", "machine hours", "low"),
)
"""Those of every run, in the order of the tables."""
QUALITY = tuple(figure.key for figure in FIGURES if figure.quality)


def figures_for(targets: Sequence[Target]) -> tuple[Figure, ...]:
    """FIGURES, with what each target takes behind what the lowest loss takes."""
    place = [figure.key for figure in FIGURES].index("images_per_second")
    to_targets = [figure for target in targets for figure in _to_target(target)]
    return (*FIGURES[:place], *to_targets, *FIGURES[place:])


def _to_target(target: Target) -> list[Figure]:
    name, key = target_name(target.metric, target.value), f"{target.metric}={target.value:g}"
    return [
        Figure(f"epochs_to_{key}", f"epochs to {name}", "low", whole=False),
        Figure(f"updates_to_{key}", f"updates to {name}", "low", whole=False, write=count),
        Figure(f"seconds_to_{key}", f"training time to {name}", "low", whole=False, write=duration),
    ]


def measure(run: RunRecord, targets: Sequence[Target]) -> dict[str, float]:
    """The figures that the run has, by key. Times in seconds are of training steps, but the wall time."""
    all_figures = run_figures(run, [], Prices())
    lowest, highest = best(run, "loss"), best(run, "top1")
    last = run.evals[-1].values if run.evals else {}
    found: dict[str, float | None] = {
        "best_loss": lowest[0] if lowest else None,
        "last_loss": number(last, "loss"),
        "best_top1": highest[0] if highest else None,
        "last_top1": number(last, "top1"),
        **_took("best", lowest[1] if lowest else None),
        "images_per_second": _median([number(p.values, "images_per_second") for p in run.train]),
        "seconds_per_epoch": _median([seconds for _loss, seconds in epochs_of(run).values()]),
        "scaling_efficiency": all_figures.scaling_efficiency,
        "epochs": all_figures.epoch,
        "updates": number(run.last.values, "step") if run.last else None,
        "train_seconds": all_figures.train_seconds or None,
        "wall_seconds": all_figures.wall_seconds,
        "attempts": all_figures.attempts,
        "machine_hours": None if all_figures.nodes_assumed else all_figures.cost.node_hours,
    }
    for target in targets:
        first = reached(run, target)
        found |= _took(f"{target.metric}={target.value:g}", first[1] if first else None)
    return {key: float(value) for key, value in found.items() if value is not None}


def _took(what: str, point: Point | None) -> dict[str, float | None]:
    return {
        f"epochs_to_{what}": point.epoch if point else None,
        f"updates_to_{what}": number(point.values, "step") if point else None,
        f"seconds_to_{what}": point.train_s if point else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
