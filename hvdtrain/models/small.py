"""Small networks for small images: a VGG-like one, ResNet-9, and airbench94."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvdtrain.models.layers import Network, ResidualBlock, batch_norm, conv, init_weights

WHITENING_EPS = 5e-4
"""Added to the variances that whitening divides by. Source: airbench94, see `Airbench`."""


class SmallVGG(Network):
    """Four 3×3 convolutions with biases and no norm, a maximum over 2×2 after each.

    [N, 3, H, W] float32 → [N, num_classes] logits; H and W from 16 up. Without batch norm the
    loss of an image does not depend on its batch, so the batch size changes only the optimisation.
    Source of the form: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556.
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for width in (32, 64, 128, 128):
            layer = nn.Conv2d(inputs, width, 3, padding=1)
            self.features += nn.Sequential(layer, nn.ReLU(inplace=True), nn.MaxPool2d(2))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            inputs = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def vgg_small(num_classes: int = 2) -> SmallVGG:
    """241,090 parameters at 2 classes."""
    return SmallVGG(num_classes)


class ResNet9(Network):
    """D. Page's ResNet-9: [N, 3, H, W] float32 → [N, num_classes] logits, H and W from 16 up.

    Source: "How to train your ResNet" 4, 2018, https://myrtle.ai/learn/how-to-train-your-resnet/
    (widths 64, 128, 256, 512; residual blocks in the first and third stage; logits × 0.125).
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv_norm(3, 64),
            _conv_norm(64, 128, halve=True),
            _Residual(128),
            _conv_norm(128, 256, halve=True),
            _conv_norm(256, 512, halve=True),
            _Residual(512),
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(512, num_classes, bias=False)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        return 0.125 * self.classify(self.features(images))


def _conv_norm(inputs: int, outputs: int, halve: bool = False) -> nn.Sequential:
    layers = nn.Sequential(conv(inputs, outputs, 3), batch_norm(outputs), nn.ReLU(inplace=True))
    return layers.append(nn.MaxPool2d(2)) if halve else layers


class _Residual(ResidualBlock):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_conv_norm(width, width), _conv_norm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.branch(x))


def resnet9(num_classes: int = 10) -> ResNet9:
    """6,573,120 parameters at 10 classes."""
    return ResNet9(num_classes)


class ShiftOnlyNorm(nn.BatchNorm2d):
    """Batch norm with a learned shift and a scale that stays 1."""

    fixed: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad_(False)


class WhiteningConv(nn.Conv2d):
    """A 2×2 convolution whose kernels are set from images and stay fixed: 3 → 24 channels."""

    fixed: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self) -> None:
        super().__init__(3, 24, 2)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class Airbench(Network):
    """Keller Jordan's airbench94 network: [N, 3, H, W] → [N, num_classes] logits, H, W ≥ 18.

    `whiten` must be called with training images before the first step.
    Source: Jordan 2024, https://arxiv.org/abs/2404.00498, section 3, and airbench94.py of
    https://github.com/KellerJordan/cifar10-airbench (norms: eps 1e-12, momentum 0.4).
    """

    kaiming: ClassVar[bool] = False

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.whitening = WhiteningConv()
        self.features = nn.Sequential(
            nn.GELU(), _airbench_group(24, 64), _airbench_group(64, 256), _airbench_group(256, 256)
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(256, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(self.whitening(images))) / 9

    @torch.no_grad()
    def whiten(self, images: Tensor, sum_: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Set the first kernels so that their outputs over `images` [N, 3, H, W] are whitened.

        Kernels are ± the eigenvectors of the patches' second moments over √(eigenvalue + eps).
        `sum_` adds a tensor over ranks: with it all ranks get the same kernels, from all images.
        """
        moments = sum_(patch_moments(images))
        values, vectors = torch.linalg.eigh((moments[:-1] / moments[-1, 0]).cpu())
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        largest = vectors.abs().argmax(0, keepdim=True)
        vectors = vectors * vectors.gather(0, largest).sign()
        kernels = (vectors / (values + WHITENING_EPS).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
        self.whitening.weight.copy_(torch.cat([kernels, -kernels]))


def patch_moments(images: Tensor) -> Tensor:
    """Sums over all 2×2 patches x of `images`, float64 [13, 12]: xxᵀ in the first 12 rows, the
    number of patches in the last."""
    patches = functional.unfold(images.float(), 2).transpose(1, 2).reshape(-1, 12)
    moments = torch.zeros(13, 12, dtype=torch.float64, device=images.device)
    for part in patches.split(1 << 16):
        moments[:12] += part.double().T @ part.double()
    moments[12] = len(patches)
    return moments


def _airbench_group(inputs: int, outputs: int) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    ]
    for layer in layers:
        with torch.no_grad():  # the first outputs start as copies of the inputs
            nn.init.dirac_(layer.weight[: layer.in_channels])
    return nn.Sequential(
        layers[0],
        nn.MaxPool2d(2),
        ShiftOnlyNorm(outputs),
        nn.GELU(),
        layers[1],
        ShiftOnlyNorm(outputs),
        nn.GELU(),
    )


def airbench94(num_classes: int = 10) -> Airbench:
    """1,972,792 parameters at 10 classes, of which 1,971,352 are trained."""
    return Airbench(num_classes)
