"""Builds the optimizer of a config, with the parameter groups that the recipes need."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from hvdtrain.config.schema import Optimizer as OptimizerConfig
from hvdtrain.errors import ConfigError
from hvdtrain.optim.eager import SGD, AdamW
from hvdtrain.optim.lamb import Lamb
from hvdtrain.optim.lars import Lars

Groups = list[dict[str, Any]]


def build_optimizer(model: nn.Module, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer `cfg.name` of `model`, with its state allocated. Gradients must be allocated.

    It has two groups: matrices and kernels, which are decayed and adapted (LARS, LAMB); and
    parameters with at most one dimension (norms, biases, gains), which are never adapted, and
    decayed only with `decay_norms_and_biases`. Source: Goyal et al. 2017, 5.1 (decay).

    The optimizer works on one-dimensional views of each parameter and its gradient: on a CPU
    torch's fused kernels take four times as long for channels_last parameters as for flat ones.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    decay = cfg.weight_decay
    groups: Groups = [
        {
            "params": [_flat(p) for p in trained if p.ndim > 1],
            "weight_decay": decay,
            "adapt": True,
        },
        {
            "params": [_flat(p) for p in trained if p.ndim <= 1],
            "weight_decay": decay if cfg.decay_norms_and_biases else 0.0,
            "adapt": False,
        },
    ]
    optimizer = OPTIMIZERS[cfg.name]([group for group in groups if group["params"]], cfg)
    plain = cfg.name == "sgd" and cfg.momentum == 0
    _allocate(optimizer, () if plain else STATE[cfg.name])
    return optimizer


def _sgd(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    nesterov = cfg.nesterov and cfg.momentum > 0
    return SGD(groups, lr=0.0, momentum=cfg.momentum, nesterov=nesterov, fused=True)


def _lars(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    return Lars(groups, momentum=cfg.momentum, trust_coefficient=cfg.trust_coefficient)


def _lamb(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    return Lamb(groups, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps)


def _adamw(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    betas = (cfg.betas[0], cfg.betas[1])
    return AdamW(groups, lr=0.0, betas=betas, eps=cfg.eps, fused=True)


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "lars": _lars,
    "lamb": _lamb,
    "adamw": _adamw,
}
STATE = {
    "sgd": ("momentum_buffer",),
    "lars": ("momentum_buffer",),
    "lamb": ("step", "exp_avg", "exp_avg_sq"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
}
"""State of each optimizer per parameter: `step` is a scalar, the rest has its shape."""


def _allocate(optimizer: torch.optim.Optimizer, entries: Collection[str]) -> None:
    """Make the state of zeros. The first update is the same as without state, but the tensors
    exist from the start, so every rank can receive their values."""
    for group in optimizer.param_groups:
        for flat in group["params"] if entries else ():
            optimizer.state[flat] = {
                entry: flat.new_zeros(()) if entry == "step" else torch.zeros_like(flat)
                for entry in entries
            }


def _flat(p: nn.Parameter) -> torch.Tensor:
    """One-dimensional view of the (dense) memory of `p`, with one of its gradient."""
    flat = p.detach().as_strided((p.numel(),), (1,), p.storage_offset())
    flat.grad = _flat_gradient(p)
    return flat


def _flat_gradient(p: nn.Parameter) -> torch.Tensor:
    if p.grad is None:
        raise ValueError("gradients must be allocated before the optimizer is built")
    return p.grad.as_strided((p.numel(),), (1,), p.grad.storage_offset())


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimizer's state by name, `<parameter>/<entry>`, in the shape of the parameter
    (`step`: a scalar).

    The tensors are views of the state.
    """
    state = {flat.data_ptr(): entries for flat, entries in optimizer.state.items()}
    return {
        f"{name}/{entry}": value
        if value.ndim == 0
        else value.as_strided(p.size(), p.stride(), value.storage_offset())
        for name, p in model.named_parameters()
        for entry, value in sorted(state.get(p.data_ptr(), {}).items())
    }


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Set learning rate and momentum (β1 of LAMB and AdamW) of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def set_trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer follow `requires_grad` from the next update on.

    A parameter that requires no gradient is frozen: it gets no update, decay or momentum, and its
    optimizer state does not change. Call this on every rank, between two updates, after parameters
    were frozen or unfrozen. A parameter that is to be trained at any time must require a gradient
    when reducer and optimizer are built; raises ConfigError for one that did not.
    """
    flats = {flat.data_ptr(): flat for group in optimizer.param_groups for flat in group["params"]}
    for name, p in model.named_parameters():
        flat = flats.get(p.data_ptr())
        if flat is not None:
            # Optimizers and loss scalers skip a parameter without a gradient.
            flat.grad = _flat_gradient(p) if p.requires_grad else None
        elif p.requires_grad:
            raise ConfigError(f"{name}: cannot be trained: it was frozen when the run was set up")
