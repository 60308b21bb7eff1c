"""Adaptive gradient clipping: gradients are clipped relative to the weights that they change."""

from __future__ import annotations

import torch
from torch import nn

FLOOR = 1e-3
"""A unit's norm counts as at least this, so that weights of zero can change."""


class AdaptiveClipping:
    """Clips every unit's gradient to `clipping` times the norm of its weights.

        G ← G · λ·max(‖W‖, 1e-3) / max(‖G‖, 1e-6)   where ‖G‖ > λ·max(‖W‖, 1e-3)

    A unit is one output channel of a convolution, one row of a matrix, or a whole vector or
    scalar. The classifier (the model's attribute `classifier`, or its last linear layer) is not
    clipped. Call it on gradients that are reduced and unscaled, before decay and momentum.
    Source: Brock et al. 2021, https://arxiv.org/abs/2102.06171, section 4.1.
    """

    def __init__(self, model: nn.Module, clipping: float) -> None:
        excluded = {id(p) for p in _classifier(model).parameters()}
        self.clipping = clipping
        self.params = [p for p in model.parameters() if p.requires_grad and id(p) not in excluded]

    @torch.no_grad()
    def __call__(self) -> None:
        """Clip all gradients in place."""
        grads = [p.grad for p in self.params if p.grad is not None]
        weights = torch.cat([_unit_norms(p) for p in self.params if p.grad is not None])
        norms = torch.cat([_unit_norms(grad) for grad in grads])
        limits = self.clipping * weights.clamp(min=FLOOR)
        factors = torch.where(norms > limits, limits / norms.clamp(min=1e-6), 1.0)
        parts = [
            part.view(_units(grad), *[1] * (grad.ndim - 1)) if grad.ndim else part.view(())
            for part, grad in zip(factors.split([*map(_units, grads)]), grads, strict=True)
        ]
        torch._foreach_mul_(grads, parts)


def _classifier(model: nn.Module) -> nn.Module:
    named = getattr(model, "classifier", None)
    if isinstance(named, nn.Module):
        return named
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else nn.Identity()


def _units(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if tensor.ndim > 1 else 1


def _unit_norms(tensor: torch.Tensor) -> torch.Tensor:
    """L2 norm of every unit, [units]."""
    within = tuple(range(1, tensor.ndim)) or None
    norms: torch.Tensor = torch.linalg.vector_norm(tensor, dim=within)
    return norms.reshape(_units(tensor))
