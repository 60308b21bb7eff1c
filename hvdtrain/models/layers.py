"""Pieces that the networks share: convolutions, norms, and the starting weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]
"""Makes the normalisation layer for a number of channels."""


def batch_norm(channels: int) -> nn.Module:
    """Batch norm over the images of one rank; statistics are not shared between ranks."""
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """Group norm with up to 8 groups: no batch statistics, so a global batch may be split freely.

    Source: Wu and He 2018, https://arxiv.org/abs/1803.08494
    """
    return nn.GroupNorm(min(8, channels), channels)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A square convolution without bias that keeps the image size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def init_weights(model: nn.Module) -> None:
    """He's normal init (fan out) for convolutions, N(0, 0.01) and zero bias for linear layers.

    Norms keep torch's own start: scale 1, bias 0.
    Source: He et al. 2015, https://arxiv.org/abs/1502.01852 (convolutions);
    Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1 (classifier).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
