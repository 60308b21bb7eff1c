"""`hvdtrain study sharpness`: Keskar's sharpness of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hvdtrain.analysis.study.loss import NetworkLoss
from hvdtrain.analysis.study.shared import Ask
from hvdtrain.analysis.study.sharpness import Subspace, sharpness
from hvdtrain.errors import ConfigError

EVALUATIONS = 2
"""Of an iteration of L-BFGS-B, about, with those of its line search."""


@dataclass(frozen=True)
class SharpnessStudy:
    """In the full space and, unless `dimensions` is 0, in a random subspace, for each of `epsilons`."""

    epsilons: Sequence[float] = (1e-3, 5e-4)
    dimensions: int = 100
    iterations: int = 10
    name = "sharpness"
    unit = "evaluations"

    def settings(self) -> dict[str, Any]:
        """The limit; the rest is beside each number."""
        return {"iterations": self.iterations}

    def check(self) -> None:
        """Raise ConfigError for numbers that make no sense."""
        if not self.epsilons or min(self.epsilons) <= 0:
            shown = ",".join(f"{epsilon:g}" for epsilon in self.epsilons)
            raise ConfigError(f"--epsilon {shown}: expected numbers above 0")

    def planned(self, size: int) -> int:
        """About so many gradients."""
        spaces = 2 if self.dimensions else 1
        return len(self.epsilons) * spaces * (1 + EVALUATIONS * self.iterations)

    def answer(self, loss: NetworkLoss) -> Callable[[torch.Tensor], torch.Tensor]:
        """Loss and gradient at other weights."""

        def gradient(weights: torch.Tensor) -> torch.Tensor:
            loss.set_weights(weights)
            return loss.gradient()

        return gradient

    def measure(self, weights: torch.Tensor, ask: Ask, seed: int) -> dict[str, Any]:
        """Every sharpness of one checkpoint."""

        def evaluate(place: np.ndarray) -> tuple[float, np.ndarray]:
            found = ask(torch.from_numpy(place).to(weights)).cpu().numpy()
            return float(found[0]), found[1:]

        center = weights.cpu().numpy()
        spaces: list[Subspace | None] = [None]
        if self.dimensions:
            spaces.append(Subspace(len(center), min(self.dimensions, len(center)), seed))
        found = [
            sharpness(
                evaluate, center, epsilon, subspace=space, iterations=self.iterations, seed=seed
            )
            for space in spaces
            for epsilon in self.epsilons
        ]
        return {"sharpness": [one.as_dict() for one in found]}
