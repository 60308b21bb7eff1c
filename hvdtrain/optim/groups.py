"""Which parameters are decayed, adapted, orthogonalised, and at which rate: an optimizer's groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain.config.optimizer import Optimizer as OptimizerConfig
from hvdtrain.errors import ConfigError

Groups = list[dict[str, Any]]


class _Kind(NamedTuple):
    """What the parameters of a group have in common."""

    adapt: bool
    """More than one dimension: LARS and LAMB adapt the rate."""
    matrix: bool
    """Muon makes the step orthogonal."""
    scale: float
    """Factor on the learning rate."""
    weight_decay: float


def groups_of(
    model: nn.Module, cfg: OptimizerConfig, depths: Mapping[str, int] | None = None
) -> Groups:
    """The trained parameters of `model` by what is done with them, matrices first.

    Matrices and kernels are decayed and adapted (LARS, LAMB); parameters with at most one dimension
    (norms, biases, gains) are never adapted, and decayed only with `decay_norms_and_biases`. Source:
    Goyal et al. 2017, 5.1. `depths`: of each parameter, counted from the classifier (0) down; needed for
    `layer_decay`. Gradients must be allocated. Raises ConfigError for a rate of parameters that the
    model does not have.
    """
    found: dict[_Kind, list[torch.Tensor]] = {}
    for p, kind in _kinds(model, cfg, depths):
        found.setdefault(kind, []).append(flat_view(p))
    ordered = sorted(found.items(), key=lambda item: not item[0].adapt)
    return [{"params": params, **kind._asdict()} for kind, params in ordered]


def _kinds(
    model: nn.Module, cfg: OptimizerConfig, depths: Mapping[str, int] | None
) -> Iterator[tuple[nn.Parameter, _Kind]]:
    head = {id(p) for p in classifier_of(model).parameters()}
    shifts = {id(m.bias) for m in model.modules() if isinstance(m, _BatchNorm)}
    if cfg.shift_rate != 1.0 and not any(id(p) in shifts for p in model.parameters()):
        raise ConfigError("optimizer.shift_rate: this model has no batch norm with a shift")
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        matrix = cfg.name == "muon" and p.ndim > 1 and id(p) not in head
        factor = cfg.classifier_rate if id(p) in head else 1.0
        if cfg.name == "muon" and not matrix and id(p) not in head:
            factor *= cfg.other_rate
        if id(p) in shifts:
            factor *= cfg.shift_rate
        scale = factor if depths is None else factor * cfg.layer_decay ** depths[name]
        decayed = p.ndim > 1 or cfg.decay_norms_and_biases
        decay = cfg.weight_decay / factor if decayed else 0.0
        if matrix and cfg.normalize_filters:
            decay = 0.0
        yield p, _Kind(p.ndim > 1, matrix, scale, decay)


def classifier_of(model: nn.Module) -> nn.Module:
    """The model's attribute `classifier`, or its last linear layer; an empty module if it has none."""
    named = getattr(model, "classifier", None)
    if isinstance(named, nn.Module):
        return named
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else nn.Identity()


def flat_view(p: nn.Parameter) -> torch.Tensor:
    """One-dimensional view of the (dense) memory of `p`, with one of its gradient."""
    flat = p.detach().as_strided((p.numel(),), (1,), p.storage_offset())
    flat.grad = flat_gradient(p)
    return flat


def flat_gradient(p: nn.Parameter) -> torch.Tensor:
    """One-dimensional view of the memory of the gradient of `p`, which must be allocated."""
    if p.grad is None:
        raise ValueError("gradients must be allocated before the optimizer is built")
    return p.grad.as_strided((p.numel(),), (1,), p.grad.storage_offset())


def matrix_shapes(model: nn.Module) -> dict[int, torch.Size]:
    """Shapes of the trained parameters with two or more dimensions, by the address of their memory.

    Raises ConfigError if one does not lie in memory row (index of the first dimension) after row.
    """
    shapes = {}
    for name, p in model.named_parameters():
        if p.requires_grad and p.ndim > 1:
            if len(p) > 1 and p.stride(0) * len(p) != p.numel():
                raise ConfigError(
                    f"optimizer.name: muon needs matrices that lie in memory row after row; {name} has "
                    f"strides {list(p.stride())}: use another optimizer for this model"
                )
            shapes[p.data_ptr()] = p.shape
    return shapes
