"""Updates some parameters while the gradients of others are still summed over the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn


class UpdateByGroup:
    """Makes an optimizer's update in parts; together they equal the whole update, to the bit.

    `optimizer`: from `build_optimizer`; those update each parameter independently of the others.
    `groups`: all parameters of the optimizer, in disjoint groups.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, groups: Sequence[Iterable[nn.Parameter]]
    ) -> None:
        self._optimizer = optimizer
        self._whole = [group["params"] for group in optimizer.param_groups]
        places = [{p.data_ptr() for p in group} for group in groups]
        self._parts = [
            [[flat for flat in params if flat.data_ptr() in group] for params in self._whole]
            for group in places
        ]

    def __call__(self, number: int) -> None:
        """Update the parameters of `groups[number]`."""
        try:
            self._set(self._parts[number])
            self._optimizer.step()
        finally:
            self._set(self._whole)

    def _set(self, params: list[list[torch.Tensor]]) -> None:
        for group, members in zip(self._optimizer.param_groups, params, strict=True):
            group["params"] = members
