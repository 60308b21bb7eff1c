"""LARS: every layer has its own learning rate, from the norms of weights and gradient."""

from __future__ import annotations

from typing import Any

import torch

from hvdtrain.optim.grouped import Grouped, factor


class Lars(Grouped):
    """SGD with momentum m, whose rate for tensor w with gradient g is scaled by λ.

        λ = trust · ‖w‖ / (‖g‖ + decay · ‖w‖),  v ← m·v + lr·λ·(g + decay·w),  w ← w − v

    Decay is an L2 term of the gradient, inside the trust ratio. The momentum buffer contains the
    rate, as in the paper and in MLPerf's reference: after a change of the rate the old velocity
    fades over 1/(1−m) steps. Without `rate_inside` it does not, and v ← m·v + λ·(g + decay·w),
    w ← w − lr·v, as in timm and apex. λ is 1 where a norm is zero, and in groups whose `adapt` is
    false. Momentum is not Nesterov's: the paper has no such form.

    Works on one-dimensional parameters, each one tensor of the model. Overwrites the gradients.
    Source: You, Gitman, Ginsburg 2017, https://arxiv.org/abs/1708.03888, algorithm 1; without
    `rate_inside`: timm/optim/lars.py of https://github.com/huggingface/pytorch-image-models.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        trust_coefficient: float,
        rate_inside: bool = True,
    ) -> None:
        self._inside = rate_inside
        defaults = {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0, "adapt": True}
        super().__init__(groups, {**defaults, "trust_coefficient": trust_coefficient})

    def update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """One update of `params`."""
        decay, inside = group["weight_decay"], group["lr"] if self._inside else 1.0
        grads = [p.grad for p in params if p.grad is not None]
        rates = [inside] * len(params)
        if group["adapt"]:
            trust = _trust(params, grads, group["trust_coefficient"], decay)
            rates = list((inside * trust).unbind())
        if decay:
            torch._foreach_add_(grads, params, alpha=factor(decay))
        torch._foreach_mul_(grads, rates)
        velocities = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads)
        torch._foreach_sub_(params, velocities, alpha=1.0 if self._inside else factor(group["lr"]))


def _trust(
    params: list[torch.Tensor], grads: list[torch.Tensor], coefficient: float, decay: float
) -> torch.Tensor:
    """λ of every tensor, [len(params)]."""
    weights = torch.stack(torch._foreach_norm(params))
    gradients = torch.stack(torch._foreach_norm(grads))
    trust = coefficient * weights / (gradients + decay * weights)
    return torch.where((weights > 0) & (gradients > 0), trust, torch.ones_like(trust))
