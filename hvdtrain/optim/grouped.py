"""The base class of LARS, LAMB and Muon."""

from __future__ import annotations

import math
from typing import Any

import torch

from hvdtrain.optim.eager import Eager

FP32_MAX = 3.4028234663852886e38


def factor(value: float) -> float:
    """`value` for torch's `alpha`: infinite beyond fp32, where torch would raise an error of its own."""
    return value if abs(value) <= FP32_MAX else math.copysign(math.inf, value)


class Grouped(Eager):
    """An optimizer that updates all parameters of a group at once, by `update`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.update(group, params)

    def update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """One update of `params`, all of which have gradients, with the settings of `group`."""
        raise NotImplementedError
