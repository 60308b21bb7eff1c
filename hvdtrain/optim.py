"""The optimizer of a config: plain torch, with the parameter groups that the recipes need."""

from __future__ import annotations

import torch
from torch import nn

from hvdtrain.config import Optimizer as OptimizerConfig


def build_optimizer(model: nn.Module, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD on `model` with decay on matrices and kernels only, its momentum already allocated.

    One-dimensional parameters (batch-norm scale and shift, biases) are not decayed.
    Source: Goyal et al. 2017, 5.1.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=0.0,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov and cfg.momentum > 0,
        fused=True,
    )
    if cfg.momentum > 0:
        for p in trained:
            # A zero buffer gives the same first update as none, and has a fixed place from the
            # start, so that every rank can receive it.
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter name, `<parameter>/<entry>`; the tensors themselves."""
    return {
        f"{name}/{entry}": value
        for name, p in model.named_parameters()
        for entry, value in sorted(optimizer.state.get(p, {}).items())
        if isinstance(value, torch.Tensor)
    }


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Learning rate and momentum of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["momentum"] = momentum
