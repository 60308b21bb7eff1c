"""Residual networks with the norm before each convolution: preact ResNet-18 and wide ResNets.

Their blocks end in a convolution, so there is no option `zero_gamma`: a scale of 0 before a ReLU
would never get a gradient.
Source: He et al. 2016, https://arxiv.org/abs/1603.05027 (preactivation);
Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146 (wide).
"""

from __future__ import annotations

from torch import Tensor, nn

from hvdtrain.models.layers import Network, ResidualBlock, batch_norm, conv, init_weights


class PreactBlock(ResidualBlock):
    """Norm, ReLU, 3×3 convolution, twice: [N, inputs, H, W] → [N, width, H/stride, W/stride].

    Where the shape changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = batch_norm(inputs)
        self.conv1 = conv(inputs, width, 3, stride)
        self.norm2 = batch_norm(width)
        self.conv2 = conv(width, width, 3)
        changes = stride > 1 or inputs != width
        self.shortcut = conv(inputs, width, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = self.norm1(x).relu_()
        y = self.drop(self.conv2(self.norm2(self.conv1(active)).relu_()))
        return y + (x if self.shortcut is None else self.shortcut(active))


class PreactResNet(Network):
    """A 3×3 stem and stages of `depth` blocks: [N, 3, H, W] float32 → [N, num_classes] logits.

    Every stage except the first halves the image; H and W from 8 up.
    """

    def __init__(self, stem: int, widths: list[int], depth: int, num_classes: int) -> None:
        super().__init__()
        self.stem = conv(3, stem, 3)
        self.stages = nn.Sequential()
        inputs = stem
        for stage, width in enumerate(widths):
            blocks = nn.Sequential()
            for position in range(depth):
                stride = 2 if position == 0 and stage > 0 else 1
                blocks.append(PreactBlock(inputs, width, stride))
                inputs = width
            self.stages.append(blocks)
        self.norm = batch_norm(inputs)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.norm(self.stages(self.stem(images))).relu_())


def preact_resnet18(num_classes: int = 10) -> PreactResNet:
    """CIFAR form; 11,172,170 parameters at 10 classes."""
    return PreactResNet(64, [64, 128, 256, 512], 2, num_classes)


def wide_resnet(depth: int, width: int, num_classes: int = 10) -> PreactResNet:
    """WRN-`depth`-`width`, depth 6n + 4: stages of 16, 32 and 64 channels × width."""
    return PreactResNet(16, [16 * width, 32 * width, 64 * width], (depth - 4) // 6, num_classes)


def wrn16(num_classes: int = 10, width: int = 8) -> PreactResNet:
    """Wide ResNet-16; 10,961,370 parameters at width 8 and 10 classes."""
    return wide_resnet(16, width, num_classes)


def wrn22(num_classes: int = 10, width: int = 6) -> PreactResNet:
    """Wide ResNet-22; 9,658,458 parameters at width 6 and 10 classes."""
    return wide_resnet(22, width, num_classes)


def wrn28(num_classes: int = 10, width: int = 10) -> PreactResNet:
    """Wide ResNet-28; 36,479,194 parameters at width 10 and 10 classes."""
    return wide_resnet(28, width, num_classes)


def wrn34(num_classes: int = 10, width: int = 10) -> PreactResNet:
    """Wide ResNet-34; 46,160,474 parameters at width 10 and 10 classes."""
    return wide_resnet(34, width, num_classes)
