"""Small residual networks for small images (CIFAR: 32 px)."""

from __future__ import annotations

from torch import Tensor, nn

from hvdtrain.models.layers import Norm, batch_norm, conv, group_norm, init_weights
from hvdtrain.models.resnet import BasicBlock, stages, zero_last_gammas


class CifarResNet(nn.Module):
    """The 6n+2-layer ResNet: [N, 3, H, W] float32 → [N, num_classes] logits; H and W from 8 up.

    A 3×3 stem and three stages of n blocks, 16, 32 and 64 channels wide. Where the shape changes,
    the shortcut is a 1×1 convolution (option B; the paper pads with zeros on CIFAR), which adds
    2,752 parameters.
    Source: He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2.
    """

    def __init__(
        self, n: int, num_classes: int = 10, zero_gamma: bool = True, norm: Norm = batch_norm
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3), norm(16), nn.ReLU(inplace=True))
        self.stages = stages(BasicBlock, 16, [16, 32, 64], [n, n, n], norm)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)
        init_weights(self)
        if zero_gamma:
            zero_last_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.stages(self.stem(images))).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits


def resnet8_cifar(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """n = 1; 78,042 parameters at 10 classes."""
    return CifarResNet(1, num_classes, zero_gamma)


def resnet20_cifar(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """n = 3; 272,474 parameters at 10 classes."""
    return CifarResNet(3, num_classes, zero_gamma)


def resnet56_cifar(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """n = 9; 855,770 parameters at 10 classes."""
    return CifarResNet(9, num_classes, zero_gamma)


def resnet8_gn(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """`resnet8_cifar` with group norm.

    Without batch statistics the loss of a global batch does not depend on how many ranks share it.
    """
    return CifarResNet(1, num_classes, zero_gamma, group_norm)
