"""Measures how the weights of a run move: distances from the start, and the norm of every update."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

PERCENTILES = tuple(range(101))
START = "epoch_start."
"""Beginning of the names of weights in `tensors`."""


class WeightMeter:
    """Follows the trained parameters of a model; nothing waits for the device but `measures` and `tensors`.

    All ranks have the same weights, so one of them measures. `before_update` and `after_update` surround
    every update, `begin` every epoch.
    """

    def __init__(self, model: nn.Module) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names, self._weights = list(named), [p.detach() for p in named.values()]
        self._before: list[torch.Tensor] = []
        self._start: list[torch.Tensor] = []
        self._epoch_start: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self.epoch = 0
        """Index of the epoch that is measured."""
        self.whole = True
        """Whether it was measured from its first update on."""

    @property
    def updates(self) -> int:
        """Number of updates measured in the epoch."""
        return len(self._norms)

    def set_start(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take these for the weights before the first update. Raises KeyError if one is missing."""
        self._start = [
            weights[name].to(own.device, own.dtype, copy=True)
            for name, own in zip(self._names, self._weights, strict=True)
        ]

    def begin(self, epoch: int, *, whole: bool = True) -> None:
        """Begin an epoch with the present weights. `whole`: none of its updates was made before."""
        self._epoch_start = [weight.clone() for weight in self._weights]
        self._norms.clear()
        self.epoch, self.whole = epoch, whole

    @torch.no_grad()
    def before_update(self) -> None:
        """Keep the weights as they are."""
        if not self._before:
            self._before = [torch.empty_like(weight) for weight in self._weights]
        torch._foreach_copy_(self._before, self._weights)

    @torch.no_grad()
    def after_update(self) -> None:
        """Record the norm of the change; an update that the loss scale skipped has norm 0."""
        torch._foreach_sub_(self._before, self._weights)
        norms = torch.stack(torch._foreach_norm(self._before))
        self._norms.append(norms.double().square().sum().sqrt())

    def measures(self) -> dict[str, object]:
        """Of the epoch so far, the values of a report `Weights` without its position."""
        norms = self._list().numpy()
        norms = norms[np.isfinite(norms)]  # a rollback takes such updates back
        return {
            **self._distances("distance", "layer_distances", self._start),
            **self._distances("epoch_distance", "layer_epoch_distances", self._epoch_start),
            "path_length": float(norms.sum()),
            "updates": self.updates,
            "update_norms": np.percentile(norms, PERCENTILES).tolist() if len(norms) else [],
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint in mid-epoch keeps: copies on the CPU."""
        numbers = {"epoch": torch.tensor(self.epoch), "whole": torch.tensor(self.whole)}
        starts = zip(self._names, self._epoch_start, strict=True)
        return {
            **numbers,
            "norms": self._list(),
            **{START + name: weight.to("cpu", copy=True) for name, weight in starts},
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from the `tensors` of a checkpoint. Raises KeyError, RuntimeError if they do not fit."""
        starts = [tensors[START + name] for name in self._names]
        norms = [norm.to(self._weights[0].device) for norm in tensors["norms"].double()]
        self.begin(int(tensors["epoch"]), whole=bool(tensors["whole"]))
        for own, start in zip(self._epoch_start, starts, strict=True):
            own.copy_(start)
        self._norms = norms

    def _list(self) -> torch.Tensor:
        """The norms [updates] on the CPU, float64."""
        return torch.stack(self._norms).cpu() if self._norms else torch.zeros(0).double()

    def _distances(self, key: str, by_layer: str, origin: list[torch.Tensor]) -> dict[str, object]:
        squares: dict[str, float] = {}
        for name, weight, other in zip(self._names, self._weights, origin, strict=True):
            layer = name.rpartition(".")[0] or name
            square = (weight.double() - other.double()).square().sum().item()
            squares[layer] = squares.get(layer, 0.0) + square
        roots = {layer: square**0.5 for layer, square in squares.items()}
        return {key: sum(squares.values()) ** 0.5, by_layer: roots}
