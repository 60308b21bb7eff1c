"""The running statistics of batch norm, computed anew for other weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain import activity
from hvdtrain.engine.mixing import Batch


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of `model` that have running statistics and are not frozen."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    return [module for module in found if "train" not in module.__dict__]  # see models.freezing


@torch.no_grad()
def recompute(model: nn.Module, images: Iterable[Batch], dtype: torch.dtype) -> None:
    """Replace the running statistics of `model` by their means over `images`, by images of each batch.

    The network computes in `dtype`. Everything but batch norm stays in evaluation mode.
    Source: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2.
    """
    norms = batch_norms(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    for batch in images:
        activity.beat()
        seen += len(batch.labels)
        for norm in norms:
            norm.momentum = len(batch.labels) / seen
        model(batch.images.to(dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
