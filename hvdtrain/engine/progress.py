"""How far a run has come: saved, broadcast and restored as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hvdtrain.plan.epochs import Position


@dataclass(frozen=True)
class Evaluated:
    """The evaluations so far, and the lowest loss among them."""

    step: int = -1
    """At the last evaluation; -1 before the first."""
    best_loss: float | None = None
    best_epoch: float = 0.0
    """Epochs done at the first evaluation with that loss; `best_step`: updates."""
    best_step: int = 0
    since_best: int = 0
    """Evaluations after it."""
    loss: float | None = None
    """Of the last evaluation, as the next ones; None before the first."""
    top1: float | None = None
    top5: float | None = None

    def after(
        self,
        step: int,
        epoch: float,
        loss: float,
        top1: float | None = None,
        top5: float | None = None,
    ) -> Evaluated:
        """One more evaluation; of the same weights again it counts once."""
        if step == self.step:
            return self
        last = replace(self, step=step, loss=loss, top1=top1, top5=top5)
        if self.best_loss is None or loss < self.best_loss:
            return replace(last, best_loss=loss, best_epoch=epoch, best_step=step, since_best=0)
        return replace(last, since_best=self.since_best + 1)


@dataclass(frozen=True)
class Progress:
    """The same on all ranks at the end of a step; counts are of all ranks together."""

    position: Position = field(default_factory=Position)
    step: int = 0
    """Updates so far, skipped ones among them."""
    samples: int = 0
    """Images in all reports so far."""
    train_seconds: float = 0.0
    """Time of the training steps in all reports so far."""
    evaluated: Evaluated = field(default_factory=Evaluated)

    def after_step(self) -> Progress:
        """One more update."""
        return replace(self, step=self.step + 1)

    def at(self, position: Position) -> Progress:
        """The same counts at another place."""
        return replace(self, position=position)

    def after_report(self, samples: int, seconds: float) -> Progress:
        """`samples` more images, which took `seconds` of training."""
        return replace(
            self, samples=self.samples + samples, train_seconds=self.train_seconds + seconds
        )

    def after_evaluation(self, epoch: float, loss: float, top1: float, top5: float) -> Progress:
        """One more evaluation, of the present weights after so many epochs."""
        return replace(self, evaluated=self.evaluated.after(self.step, epoch, loss, top1, top5))

    def as_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Of `as_dict`, other keys left aside. Raises KeyError, TypeError."""
        return cls(
            position=Position(**values["position"]),
            step=values["step"],
            samples=values["samples"],
            train_seconds=values["train_seconds"],
            evaluated=Evaluated(**values.get("evaluated", {})),
        )
