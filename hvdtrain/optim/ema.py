"""A moving average of the weights, which often has a better accuracy than the weights."""

from __future__ import annotations

import torch
from torch import nn


class Ema:
    """Exponential moving average of a model's weights and of its batch-norm statistics.

        average ← average + (1 − d)·(weights − average),  d = min(decay, (1 + t)/(10 + t))

    t is the number of updates before; integer buffers are copied.
    Source: Brock et al. 2021, https://arxiv.org/abs/2102.06171 (decay 0.99999);
    the rise of d: tf.train.ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        state: dict[str, torch.Tensor] = model.state_dict()
        self.tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
        """The averages, named as in `model.state_dict()`."""
        names = [name for name, tensor in state.items() if tensor.is_floating_point()]
        self._averages = [self.tensors[name] for name in names]
        self._sources = [state[name] for name in names]
        self._copies = [(self.tensors[name], state[name]) for name in state if name not in names]

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Add the model as it is after its update number `t` (the first is 0)."""
        d = min(self.decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(self._averages, self._sources, 1 - d)
        for copy, source in self._copies:
            copy.copy_(source)
