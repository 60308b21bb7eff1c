"""Parts that the networks share: convolutions, norms, heads, and the starting weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Callable[[int], nn.Module]
"""Number of channels → normalisation layer."""


def batch_norm(channels: int) -> nn.Module:
    """Batch norm over the images of one rank, or of all: `engine/global_norm.py` sees to that."""
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """Group norm with up to 8 groups. It has no batch statistics, so a batch may be split freely.

    Source: Wu and He 2018, https://arxiv.org/abs/1803.08494
    """
    return nn.GroupNorm(min(8, channels), channels)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A square convolution without bias that keeps the image size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`x` [N, C, H, W] with zeros so that a convolution gives ⌈H/stride⌉ × ⌈W/stride⌉ values.

    An odd one out is at the end, where torch's padding at stride 2 and even sizes leaves one out.
    Source: "SAME" in https://www.tensorflow.org/api_docs/python/tf/nn.
    """
    high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    return functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


class Network(nn.Module):
    """A network that ends in pooling, dropout and one linear layer, with the names below."""

    pool: nn.Module
    """[N, C, H, W] → [N, C', 1, 1]."""
    classifier: nn.Linear
    dropout: float = 0.0
    """Share of the pooled features that is zeroed in training."""
    pools: ClassVar[bool] = True
    """Whether `pool` leaves one position, so that `model.pool` has a choice."""
    kaiming: ClassVar[bool] = True
    """Whether the convolutions start as `init_weights` draws them, so that `model.init` has a choice."""

    def classify(self, features: Tensor) -> Tensor:
        """[N, C, H, W] → [N, num_classes] logits."""
        pooled = self.pool(features).flatten(1)
        if self.dropout:
            pooled = functional.dropout(pooled, self.dropout, self.training)
        logits: Tensor = self.classifier(pooled)
        return logits


class ResidualBlock(nn.Module):
    """A block whose residual branch may be dropped, image by image, in training."""

    drop_rate: float = 0.0
    """Probability that the branch is dropped (stochastic depth)."""
    rescale: bool = True
    """Whether branches that are kept are scaled up."""

    def drop(self, branch: Tensor) -> Tensor:
        """`branch` [N, ...]: in training whole images are zeroed at `drop_rate`, and the others
        scaled up to keep the mean, unless `rescale` is off.

        Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382 (which does not scale).
        """
        if not self.drop_rate or not self.training:
            return branch
        keep = 1.0 - self.drop_rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = branch.new_empty(shape).bernoulli_(keep)
        return branch * (kept.div_(keep) if self.rescale else kept)


def init_weights(model: nn.Module) -> None:
    """Draw the weights: He's normal (fan out) for convolutions, N(0, 0.01) for linear layers.

    Biases of linear layers are 0. Norms keep torch's starting values: scale 1, bias 0.
    Source: He et al. 2015, https://arxiv.org/abs/1502.01852 (convolutions);
    Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1 (classifier).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def use_fan_in(model: nn.Module) -> None:
    """Scale convolutions drawn by `init_weights` to He's normal by fan in; no new numbers are drawn."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            outputs, inputs = module.weight.shape[:2]
            with torch.no_grad():
                module.weight.mul_(math.sqrt(outputs / inputs))
