"""`hvdtrain study hessian`: eigenvalues, trace and spectral density at checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hvdtrain.analysis.study.hessian import Spectrum, density, largest_eigenvalues, spectrum
from hvdtrain.analysis.study.loss import NetworkLoss
from hvdtrain.analysis.study.shared import Ask
from hvdtrain.errors import ConfigError

GRID = 401
"""Points at which the density is given."""
WIDTH = 0.01
"""Deviation of the Gaussians that smooth the density, in parts of the range of eigenvalues."""


@dataclass(frozen=True)
class HessianStudy:
    """`top` eigenvalues by at most `most` products; trace and density by `probes` random vectors with
    `steps` products each."""

    top: int = 5
    most: int = 100
    tolerance: float = 1e-3
    probes: int = 10
    steps: int = 30
    name = "hessian"
    unit = "products"

    def settings(self) -> dict[str, Any]:
        """All but the number of eigenvalues, which are listed."""
        limits = {"most": self.most, "tolerance": self.tolerance}
        return {**limits, "probes": self.probes, "steps": self.steps}

    def check(self) -> None:
        """Raise ConfigError for a tolerance of 0 or less."""
        if self.tolerance <= 0:
            raise ConfigError(f"--tolerance {self.tolerance:g}: expected a number above 0")

    def planned(self, size: int) -> int:
        """At most so many products."""
        return min(self.most, size) + min(self.probes, size) * min(self.steps, size)

    def answer(self, loss: NetworkLoss) -> Callable[[torch.Tensor], torch.Tensor]:
        """Hessian × vector."""
        return loss.product

    def measure(self, weights: torch.Tensor, ask: Ask, seed: int) -> dict[str, Any]:
        """Every figure of one checkpoint."""
        n, device = len(weights), weights.device
        ends = largest_eigenvalues(
            ask,
            n,
            self.top,
            seed=seed,
            most=self.most,
            tolerance=self.tolerance,
            device=device,
        )
        whole = spectrum(ask, n, probes=self.probes, steps=self.steps, seed=seed, device=device)
        return {
            "largest": ends.largest,
            "residuals": ends.residuals,
            "smallest": ends.smallest,
            "products": ends.products,
            "trace": whole.trace,
            "trace_error": whole.trace_error,
            **_density(whole, ends.smallest, ends.largest[0]),
            "nodes": whole.nodes.tolist(),
            "weights": whole.weights.tolist(),
        }


def _density(whole: Spectrum, smallest: float, largest: float) -> dict[str, Any]:
    low, high = min(smallest, float(whole.nodes.min())), max(largest, float(whole.nodes.max()))
    extent = high - low or 1.0
    at, width = np.linspace(low - 0.05 * extent, high + 0.05 * extent, GRID), WIDTH * extent
    values = density(whole, at, width)
    return {"density_width": width, "density_at": at.tolist(), "density": values.tolist()}
