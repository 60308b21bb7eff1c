"""ResNet v1.5 and ResNet-D for images of any size from 32 px up.

v1.5 puts the stride of a bottleneck on its 3×3 convolution; v1 had it on the first 1×1.
Source: He et al. 2015, https://arxiv.org/abs/1512.03385 (the network);
https://catalog.ngc.nvidia.com/orgs/nvidia/resources/resnet_50_v1_5_for_pytorch (v1.5);
He et al. 2018, https://arxiv.org/abs/1812.01187, section 4 (D).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from hvdtrain.models.layers import (
    Network,
    Norm,
    ResidualBlock,
    batch_norm,
    conv,
    init_weights,
)


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions: [N, inputs, H, W] → [N, width, H/stride, W/stride]."""

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        norm: Norm = batch_norm,
        pooled_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.norm2 = norm(width)
        self.shortcut = shortcut(inputs, width, stride, norm, pooled_shortcut)

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.norm2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(x)).relu_()
        y = self.drop(self.norm2(self.conv2(y)))
        return y.add_(self.shortcut(x)).relu_()


class Bottleneck(ResidualBlock):
    """1×1, 3×3, 1×1 convolutions: [N, inputs, H, W] → [N, 4·width, H/stride, W/stride]."""

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        norm: Norm = batch_norm,
        pooled_shortcut: bool = False,
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, stride)
        self.norm2 = norm(width)
        self.conv3 = conv(width, outputs, 1)
        self.norm3 = norm(outputs)
        self.shortcut = shortcut(inputs, outputs, stride, norm, pooled_shortcut)

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.norm3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.drop(self.norm3(self.conv3(y)))
        return y.add_(self.shortcut(x)).relu_()


Block = type[BasicBlock] | type[Bottleneck]


def shortcut(inputs: int, outputs: int, stride: int, norm: Norm, pooled: bool = False) -> nn.Module:
    """The identity, or a 1×1 convolution and a norm where the shape changes (option B).

    `pooled`: an average pooling before the convolution has the stride, so every pixel counts.
    """
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if pooled:
        mean = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        return nn.Sequential(mean, conv(inputs, outputs, 1), norm(outputs))
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))


def stages(
    block: Block,
    inputs: int,
    widths: list[int],
    depths: list[int],
    norm: Norm = batch_norm,
    pooled_shortcut: bool = False,
) -> nn.Sequential:
    """`depths[i]` blocks of `widths[i]`; every stage except the first halves the image."""
    layers = nn.Sequential()
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = nn.Sequential()
        for position in range(depth):
            stride = 2 if position == 0 and stage > 0 else 1
            blocks.append(block(inputs, width, stride, norm, pooled_shortcut))
            inputs = width * block.expansion
        layers.append(blocks)
    return layers


def zero_last_gammas(model: nn.Module) -> None:
    """Set the last scale of each residual branch to 0, so that a block starts as its shortcut.

    Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1.
    """
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            scale = module.last_norm.weight
            assert isinstance(scale, Tensor)
            nn.init.zeros_(scale)


def deep_stem() -> nn.Sequential:
    """Three 3×3 convolutions in place of the 7×7: [N, 3, H, W] → [N, 64, H/4, W/4]."""
    layers = nn.Sequential()
    for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        layers += nn.Sequential(
            conv(inputs, outputs, 3, stride), batch_norm(outputs), nn.ReLU(inplace=True)
        )
    return layers.append(nn.MaxPool2d(3, 2, padding=1))


class ResNet(Network):
    """ResNet v1.5, or D with a deep stem and pooled shortcuts: [N, 3, H, W] float32 → [N, num_classes] logits.

    H and W from 32 up.
    """

    def __init__(
        self,
        block: Block,
        depths: list[int],
        num_classes: int = 1000,
        zero_gamma: bool = True,
        variant_d: bool = False,
    ) -> None:
        super().__init__()
        self.depths = depths
        self.stem = (
            deep_stem()
            if variant_d
            else nn.Sequential(
                conv(3, 64, 7, 2),
                batch_norm(64),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2, padding=1),
            )
        )
        self.stages = stages(block, 64, [64, 128, 256, 512], depths, batch_norm, variant_d)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512 * block.expansion, num_classes)
        init_weights(self)
        if zero_gamma:
            zero_last_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.stages(self.stem(images)))


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


def resnet152(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """60,192,808 parameters at 1000 classes."""
    return ResNet(Bottleneck, [3, 8, 36, 3], num_classes, zero_gamma)


def resnet18d(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """11,708,744 parameters at 1000 classes."""
    return ResNet(BasicBlock, [2, 2, 2, 2], num_classes, zero_gamma, variant_d=True)


def resnet34d(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """21,816,904 parameters at 1000 classes."""
    return ResNet(BasicBlock, [3, 4, 6, 3], num_classes, zero_gamma, variant_d=True)


def resnet50d(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """25,576,264 parameters at 1000 classes."""
    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes, zero_gamma, variant_d=True)


def resnet101d(num_classes: int = 1000, zero_gamma: bool = True) -> ResNet:
    """44,568,392 parameters at 1000 classes."""
    return ResNet(Bottleneck, [3, 4, 23, 3], num_classes, zero_gamma, variant_d=True)
