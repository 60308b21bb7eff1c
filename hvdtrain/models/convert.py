"""Converts a trained batch-norm ResNet to an NF-ResNet of the same depths, for fine-tuning.

Every batch norm, with its running statistics, is folded into the gain and bias of the convolution
before it. So each branch computes the same as before, with two exceptions:
- A standardised kernel has mean 0, so the mean of a trained kernel is lost. The bias makes up for
  what it added on average. This assumes inputs that are normal before their ReLU, with the mean and
  variance of the batch norm.
- A ResNet applies its last ReLU to the sum of branch and shortcut, an NF-ResNet only to the input
  of the branch. So a block with an identity shortcut also passes on negative values.
A ResNet whose kernels have mean 0 and whose blocks all have projections is converted exactly. Any
other one is approximated, and needs fine-tuning.
Source of the idea: Brock et al. 2021, https://arxiv.org/abs/2102.06171 (fine-tuning); the
arithmetic is in docs/reference/models.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hvdtrain.models.nfnet import ACTIVATION_GAIN, ALPHA, expected_variances

BN_EPS = 1e-5
RELU = ACTIVATION_GAIN["relu"]


class Moments(NamedTuple):
    """Mean and variance of every channel before a ReLU, [C] each."""

    mean: Tensor
    var: Tensor

    def plus(self, other: Moments) -> Moments:
        """The moments of the sum, if the two are independent."""
        return Moments(self.mean + other.mean, self.var + other.var)

    def relu_sum(self) -> Tensor:
        """The sum over channels of E[max(z, 0)], z normal: scalar."""
        std = self.var.clamp(min=1e-12).sqrt()
        t = self.mean / std
        density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        means: Tensor = self.mean * torch.special.ndtr(t) + std * density
        return means.sum()


def resnet_to_nf(tensors: dict[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """The tensors of an `NFNet` (NF-ResNet) from those of a `ResNet` with the same `depths`.

    Both by the names of this package. The classifier is converted, too.
    Raises KeyError where `tensors` lacks one.
    """
    old = {name: tensor.double() for name, tensor in tensors.items()}
    new: dict[str, Tensor] = {}
    x = _fold(old, new, ("stem.0", "stem.1"), "stem.0", 1.0, None)
    variances = expected_variances(depths)
    for stage, depth in enumerate(depths):
        for position in range(depth):
            block = f"stages.{stage}.{position}"
            into = RELU * next(variances) ** -0.5
            y = _fold(old, new, (f"{block}.conv1", f"{block}.norm1"), f"{block}.conv1", into, x)
            y = _fold(old, new, (f"{block}.conv2", f"{block}.norm2"), f"{block}.conv2", RELU, y)
            y = _fold(old, new, (f"{block}.conv3", f"{block}.norm3"), f"{block}.conv3", RELU, y)
            new[f"{block}.skip_gain"] = torch.tensor(1 / ALPHA)
            names = (f"{block}.shortcut.0", f"{block}.shortcut.1")
            if position == 0:
                x = _fold(old, new, names, f"{block}.shortcut", into, x)
            x = x.plus(y)
    new["classifier.weight"] = old["classifier.weight"] / RELU
    new["classifier.bias"] = old["classifier.bias"]
    return {name: tensor.float() for name, tensor in new.items()}


def _fold(
    old: dict[str, Tensor],
    new: dict[str, Tensor],
    source: tuple[str, str],
    target: str,
    input_scale: float,
    before: Moments | None,
) -> Moments:
    """Convert the convolution and norm `source` to the standardised convolution `target`.

    The input of the new network is `input_scale` times that of the old one. `before`: the moments
    before the ReLU of the input, None for images, whose mean is 0. Returns the moments of the output.
    """
    conv, norm = source
    weight, shift = old[f"{conv}.weight"], old[f"{norm}.bias"]
    scale = old[f"{norm}.weight"] / (old[f"{norm}.running_var"] + BN_EPS).sqrt()
    var, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0)
    size = (weight[0].numel() * var).clamp(min=1e-30).sqrt()
    new[f"{target}.weight"] = (weight - mean.view(-1, 1, 1, 1)) / size.view(-1, 1, 1, 1)
    new[f"{target}.gain"] = scale * size / input_scale
    dropped = 0.0 if before is None else mean * weight[0, 0].numel() * before.relu_sum()
    new[f"{target}.bias"] = shift + scale * (dropped - old[f"{norm}.running_mean"])
    return Moments(shift, old[f"{norm}.weight"] ** 2)
