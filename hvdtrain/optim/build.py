"""Builds the optimizer of a config, with the parameter groups that the recipes need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from hvdtrain.config.optimizer import Optimizer as OptimizerConfig
from hvdtrain.errors import ConfigError
from hvdtrain.optim.eager import SGD, AdamW
from hvdtrain.optim.groups import Groups, flat_gradient, groups_of, matrix_shapes
from hvdtrain.optim.lamb import Lamb
from hvdtrain.optim.lars import Lars
from hvdtrain.optim.muon import Muon, Ranks


def build_optimizer(
    model: nn.Module,
    cfg: OptimizerConfig,
    *,
    depths: Mapping[str, int] | None = None,
    autocast: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `cfg.name` of `model`, with its state allocated. Gradients must be allocated.

    Its groups are those of `groups_of`, which `depths` is for. `autocast`: type of the network's forward
    pass, None for fp32; `ranks`: those that share Muon's work, if the config says so.

    The optimizer works on one-dimensional views of each parameter and its gradient: on a CPU
    torch's fused kernels take four times as long for channels_last parameters as for flat ones.
    """
    groups = groups_of(model, cfg, depths)
    optimizer: torch.optim.Optimizer
    if cfg.name == "muon":
        optimizer = Muon(
            groups,
            momentum=cfg.momentum,
            other_momentum=cfg.other_momentum,
            nesterov=cfg.nesterov,
            steps=cfg.newton_schulz_steps,
            normalize=cfg.normalize_filters,
            shapes=matrix_shapes(model),
            dtype=None if autocast is None else torch.bfloat16,
            ranks=ranks if cfg.share_work else None,
        )
    else:
        optimizer = OPTIMIZERS[cfg.name](groups, cfg)
    plain = cfg.name == "sgd" and cfg.momentum == 0
    _allocate(optimizer, () if plain else STATE[cfg.name])
    return optimizer


def _sgd(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    nesterov = cfg.nesterov and cfg.momentum > 0
    return SGD(groups, lr=0.0, momentum=cfg.momentum, nesterov=nesterov, fused=True)


def _lars(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    return Lars(
        groups,
        momentum=cfg.momentum,
        trust_coefficient=cfg.trust_coefficient,
        rate_inside=cfg.lars_rate == "inside",
    )


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
    "muon": ("momentum_buffer",),
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
        group["lr"] = lr * group["scale"]
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
            flat.grad = flat_gradient(p) if p.requires_grad else None
        elif p.requires_grad:
            raise ConfigError(f"{name}: cannot be trained: it was frozen when the run was set up")
