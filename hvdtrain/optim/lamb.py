"""LAMB: Adam, with each layer's step scaled to the norm of its weights."""

from __future__ import annotations

from typing import Any

import torch

from hvdtrain.optim.grouped import Grouped, factor


class Lamb(Grouped):
    """Adam with decoupled decay whose step on tensor w has the length lr·‖w‖.

        m ← β1·m + (1−β1)·g,  v ← β2·v + (1−β2)·g²
        u = (m / (1−β1ᵗ)) / (√(v / (1−β2ᵗ)) + eps) + decay·w
        w ← w − lr · ‖w‖/‖u‖ · u

    The ratio ‖w‖/‖u‖ is 1 where a norm is zero, and in groups whose `adapt` is false; it has no
    bounds (φ is the identity). Decay is not part of the gradient, but of the step u.

    Works on one-dimensional parameters, each one tensor of the model.
    Source: You et al. 2020, https://arxiv.org/abs/1904.00962, algorithm 2.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        defaults = {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0, "adapt": True}
        super().__init__(groups, defaults)

    def update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """One update of `params`."""
        updates = self._adam(group, params)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=factor(group["weight_decay"]))
        rates = [group["lr"]] * len(params)
        if group["adapt"]:
            weights = torch.stack(torch._foreach_norm(params))
            lengths = torch.stack(torch._foreach_norm(updates))
            trust = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
            rates = list((group["lr"] * trust).unbind())
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(params, updates)

    def _adam(self, group: dict[str, Any], params: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adam's steps at learning rate 1, without decay."""
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        steps = [self.state[p]["step"] for p in params]
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        done = torch.stack(steps).double()
        roots = torch._foreach_div(squares, list((1 - beta2**done).float().unbind()))
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, list((1 - beta1**done).float().unbind()))
        torch._foreach_div_(updates, roots)
        return list(updates)
