"""Adaptive gradient clipping: gradients are clipped relative to the weights that they change."""

from __future__ import annotations

import torch
from torch import nn

from hvdtrain.optim.groups import classifier_of

FLOOR = 1e-3
"""A unit's norm counts as at least this, so that weights of zero can change."""


class AdaptiveClipping:
    """Clips every unit's gradient to `clipping` times the norm of its weights.

        G ← G · λ·max(‖W‖, 1e-3) / max(‖G‖, 1e-6)   where ‖G‖ > λ·max(‖W‖, 1e-3)

    A unit is one output channel of a convolution, one row of a matrix, or a whole vector or
    scalar. The classifier (`classifier_of`) is not clipped, except for its bias with
    `classifier_bias`. Call it on gradients that are reduced and unscaled, before decay and momentum.
    Source: Brock et al. 2021, https://arxiv.org/abs/2102.06171, section 4.1; the bias:
    experiment_nfnets.py of https://github.com/google-deepmind/deepmind-research (nfnets).
    """

    def __init__(self, model: nn.Module, clipping: float, *, classifier_bias: bool = False) -> None:
        classifier = classifier_of(model)
        excluded = {id(p) for p in classifier.parameters()}
        if classifier_bias:
            excluded.discard(id(getattr(classifier, "bias", None)))
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


def _units(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if tensor.ndim > 1 else 1


def _unit_norms(tensor: torch.Tensor) -> torch.Tensor:
    """L2 norm of every unit, [units]."""
    within = tuple(range(1, tensor.ndim)) or None
    norms: torch.Tensor = torch.linalg.vector_norm(tensor, dim=within)
    return norms.reshape(_units(tensor))
