"""ResNet v1.5 for images of any size from 32 px up.

v1.5 puts the stride of a bottleneck on its 3×3 convolution; v1 had it on the first 1×1.
Source: He et al. 2015, https://arxiv.org/abs/1512.03385 (the network);
https://catalog.ngc.nvidia.com/orgs/nvidia/resources/resnet_50_v1_5_for_pytorch (v1.5).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from hvdtrain.models.layers import Norm, batch_norm, conv, init_weights


class BasicBlock(nn.Module):
    """Two 3×3 convolutions: [N, inputs, H, W] → [N, width, H/stride, W/stride]."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm = batch_norm) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.norm2 = norm(width)
        self.shortcut = shortcut(inputs, width, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.norm2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y))
        return y.add_(self.shortcut(x)).relu_()


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions: [N, inputs, H, W] → [N, 4·width, H/stride, W/stride]."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm = batch_norm) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, stride)
        self.norm2 = norm(width)
        self.conv3 = conv(width, outputs, 1)
        self.norm3 = norm(outputs)
        self.shortcut = shortcut(inputs, outputs, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.norm3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.norm3(self.conv3(y))
        return y.add_(self.shortcut(x)).relu_()


Block = type[BasicBlock] | type[Bottleneck]


def shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """The identity, or a 1×1 convolution and a norm where the shape changes (option B)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))


def stages(
    block: Block, inputs: int, widths: list[int], depths: list[int], norm: Norm = batch_norm
) -> nn.Sequential:
    """`depths[i]` blocks of `widths[i]`; every stage but the first halves the image."""
    layers = nn.Sequential()
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = nn.Sequential()
        for position in range(depth):
            stride = 2 if position == 0 and stage > 0 else 1
            blocks.append(block(inputs, width, stride, norm))
            inputs = width * block.expansion
        layers.append(blocks)
    return layers


def zero_last_gammas(model: nn.Module) -> None:
    """Scale 0 in the last norm of each residual branch: every block starts as its shortcut.

    Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1.
    """
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            scale = module.last_norm.weight
            assert isinstance(scale, Tensor)
            nn.init.zeros_(scale)


class ResNet(nn.Module):
    """ResNet v1.5: [N, 3, H, W] float32 → [N, num_classes] logits; H and W from 32 up."""

    def __init__(
        self, block: Block, depths: list[int], num_classes: int = 1000, zero_gamma: bool = True
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 64, 7, 2),
            batch_norm(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.stages = stages(block, 64, [64, 128, 256, 512], depths)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512 * block.expansion, num_classes)
        init_weights(self)
        if zero_gamma:
            zero_last_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.stages(self.stem(images))).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits


def resnet18(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """11,689,512 parameters at 1000 classes."""
    return ResNet(BasicBlock, [2, 2, 2, 2], num_classes, zero_gamma)


def resnet34(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """21,797,672 parameters at 1000 classes."""
    return ResNet(BasicBlock, [3, 4, 6, 3], num_classes, zero_gamma)


def resnet50(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """25,557,032 parameters at 1000 classes."""
    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes, zero_gamma)


def resnet101(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """44,549,160 parameters at 1000 classes."""
    return ResNet(Bottleneck, [3, 4, 23, 3], num_classes, zero_gamma)
