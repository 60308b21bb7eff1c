"""Small residual networks for small images (CIFAR: 32 px)."""

from __future__ import annotations

from torch import Tensor, nn

from hvdtrain.models.layers import Network, Norm, batch_norm, conv, group_norm, init_weights
from hvdtrain.models.resnet import BasicBlock, stages, zero_last_gammas


class CifarResNet(Network):
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
        return self.classify(self.stages(self.stem(images)))


def resnet8_cifar(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """n = 1; 78,042 parameters at 10 classes."""
    return CifarResNet(1, num_classes, zero_gamma)


def resnet20_cifar(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """n = 3; 272,474 parameters at 10 classes."""
    return CifarResNet(3, num_classes, zero_gamma)


def resnet56_cifar(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """n = 9; 855,770 parameters at 10 classes."""
    return CifarResNet(9, num_classes, zero_gamma)


class QuickResNet(Network):
    """Eleven layers for few epochs: [N, 3, H, W] float32 → [N, num_classes] logits, H, W ≥ 16.

    A 3×3 stem of 32 channels; three stages of 64, 128 and 256 channels, each a convolution of
    stride 2 and one residual block; pooling by maximum before the classifier.
    Source of the idea: D. Page, "How to train your ResNet", 2018 (myrtle.ai), whose ResNet-9 is
    twice as wide and has no residual block in its second stage.
    """

    def __init__(self, num_classes: int = 10, zero_gamma: bool = True) -> None:
        super().__init__()
        layers = [_conv_norm(3, 32)]
        for inputs, width in ((32, 64), (64, 128), (128, 256)):
            layers += [_conv_norm(inputs, width, stride=2), BasicBlock(width, width, 1)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(256, num_classes)
        init_weights(self)
        if zero_gamma:
            zero_last_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        conv(inputs, outputs, 3, stride), batch_norm(outputs), nn.ReLU(inplace=True)
    )


def resnet11_cifar(num_classes: int = 10, zero_gamma: bool = True) -> QuickResNet:
    """1,941,546 parameters at 10 classes."""
    return QuickResNet(num_classes, zero_gamma)


def resnet8_gn(num_classes: int = 10, zero_gamma: bool = True) -> CifarResNet:
    """`resnet8_cifar` with group norm.

    Without batch statistics the loss of a global batch does not depend on how many ranks share it.
    """
    return CifarResNet(1, num_classes, zero_gamma, group_norm)
